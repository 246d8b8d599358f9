"""Are the results right? Five steps of each mechanism, one and all devices, and NaN."""

import functools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.check import mechanisms, rounding
from moco_jax.check.findings import Finding, Verdict
from moco_jax.check.mechanisms import Deviation, Results, Steps
from moco_jax.check.timing import threads
from moco_jax.data.loading.loader import cores
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.training.integrity import checksums


class Arithmetic(NamedTuple):
    """How a device computes, and how far that may be from float64.

    Attributes:
      dtype: of the step.
      exact: whether float32 values are multiplied without rounding. As a run is trained, a GPU
        rounds them to TensorFloat-32, and a TPU to bfloat16.
      limit: largest deviations.
      steps: number of first steps that are compared.
      mechanisms: that are computed in it.
    """

    dtype: str
    exact: bool
    limit: Deviation
    steps: int
    mechanisms: tuple[str, ...]


# Float32 differs from float64 by less than 4e-3 in an update whose EMA is of the size of its
# rounding errors, and by less than 2e-6 elsewhere. The steps of lower precision soon part in these
# tiny networks, so only the first one counts.
_EXACT = Deviation(loss=1e-4, gradient=1e-3, update=0.03)
_LOW = Deviation(loss=0.03, gradient=0.1, update=math.inf)
ARITHMETICS = {
    "exact float32": Arithmetic(
        "float32",
        True,
        _EXACT,
        mechanisms.STEPS,
        tuple(mechanisms.MECHANISMS),
    ),
    "float32": Arithmetic("float32", False, _LOW, 1, ("queue", "v3 with ViT")),
    "bfloat16": Arithmetic("bfloat16", False, _LOW, 1, ("queue", "v3 with ViT")),
}
_ADVICE = (
    "do not train here: the step computes something else than the paper. Another version of JAX or "
    "of the driver may help; report this line and the JSON file"
)
_TRIALS = 8  # to measure the effect of rounding errors
# Where rounding errors alone move results further, a comparison shows nothing.
_MOST_SENSITIVE = Deviation(loss=0.03, gradient=0.1, update=0.3)
_LARGEST_MESH = 512  # devices: the batch of the comparison grows with them


def checks() -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yields the name and the check of each mechanism and dtype, and of the NaN guard.

    The programs are compiled side by side.
    """
    layout, references = make_layout(jax.local_devices()[:1]), mechanisms.references()
    with threads(min(8, cores())) as pool:
        waiting: dict[tuple[str, str], Future[Steps]] = {}
        for title, each in ARITHMETICS.items():
            for name in each.mechanisms:
                waiting[name, title] = pool.submit(prepare, name, each, layout)
        for (name, title), steps in waiting.items():
            yield name, functools.partial(_compared, name, title, steps, references[name])
        yield "NaN guard", lambda: guarded(waiting["queue", "exact float32"].result())


def prepare(name: str, arithmetic: Arithmetic, layout: Layout) -> Steps:
    """Returns the compiled steps of a mechanism."""
    config = mechanisms.MECHANISMS[name]()
    config.dtype = arithmetic.dtype
    return mechanisms.prepare(config, layout, exact=arithmetic.exact)


def _compared(name: str, title: str, steps: Future[Steps], reference: Results) -> Finding:
    return compared(name, title, mechanisms.run(steps.result(), reference.first), reference)


def compared(name: str, title: str, found: Results, reference: Results) -> Finding:
    """Returns the verdict on the results of a mechanism, in one of the ARITHMETICS."""
    _, _, limit, count, _ = ARITHMETICS[title]
    away = mechanisms.deviation(_first(found, count), _first(reference, count))
    right = _within(away, limit)
    steps, differ = ("1 step", "differs") if count == 1 else (f"{count} steps", "differ")
    shown = away._asdict() if count > 1 else {"loss": away.loss, "gradient": away.gradient}
    parts = (f"{part} {x:.0e}" for part, x in shown.items())
    text = f"{steps} in {title} {differ} from float64 by: {', '.join(parts)}"
    if not right:
        text += f"; allowed: {', '.join(f'{getattr(limit, part):.0e}' for part in shown)}"
    verdict = Verdict.OK if right else Verdict.WRONG
    values = {**away._asdict(), "arithmetic": title, "losses": found.losses}
    return Finding(name, verdict, text, "" if right else _ADVICE, values)


def _first(results: Results, count: int) -> Results:
    return results._replace(losses=results.losses[:count], gradients=results.gradients[:count])


def guarded(steps: Steps) -> Finding:
    """Returns whether a NaN in an image reaches the loss, and the check of the saved state."""
    (first, *views), indices = steps.inputs(0)
    spoiled = np.array(first)
    spoiled[0, 0, 0, 0] = np.nan  # one value of one pixel
    spoiled = jax.device_put(spoiled, first.sharding)
    state, metrics = steps.step(steps.start(), (spoiled, *views), indices)
    healthy = not checksums.summarize(steps.start()).not_finite
    named = checksums.summarize(state).not_finite
    if not math.isfinite(float(metrics["loss"])) and named and healthy:
        text = f"a NaN stops a run: {len(named)} arrays of the state are named"
        return Finding("NaN guard", Verdict.OK, text)
    text = f"loss={float(metrics['loss'])} after a NaN in the images, {len(named)} arrays named"
    advice = "a run would not stop at NaN; remove fast-math options from XLA_FLAGS"
    return Finding("NaN guard", Verdict.WRONG, text, advice)


def check_devices(make: Callable[[], ConfigDict] = mechanisms.queue) -> Finding:
    """Returns whether all devices together compute what one of them computes."""
    name, devices = "all devices", jax.device_count()
    if devices == 1:
        return Finding(name, Verdict.OK, "there is one device")
    if devices > _LARGEST_MESH:
        text = f"{devices} devices; the comparison with one is for at most {_LARGEST_MESH}"
        return Finding(name, Verdict.SKIPPED, text)
    config = make()
    config.bn_groups = math.lcm(8, devices)
    config.batch_size = config.lr_batch = 4 * config.bn_groups
    config.queue_size = 4 * config.batch_size
    steps, every = (
        mechanisms.prepare(config, layout)
        for layout in (make_layout(jax.local_devices()[:1]), make_layout())
    )
    one, found = mechanisms.run(steps), mechanisms.run(every)
    updates = {k: x for k, x in one.updates.items() if k in found.updates}
    away = mechanisms.deviation(found, one._replace(updates=updates))
    limit = _limit_of_sums(steps)
    shown = ", ".join(f"{part} {x:.0e}" for part, x in away._asdict().items())
    allowed = ", ".join(f"{x:.0e}" for x in limit)
    text = f"{devices} devices and one differ by: {shown}; allowed: {allowed}"
    values = {**away._asdict(), "limit": limit._asdict()}
    undecided = not _within(limit, _MOST_SENSITIVE) and not _within(away, _EXACT)
    if undecided and all(map(math.isfinite, away)):
        text = f"rounding errors alone move the results of {devices} devices; allowed: {allowed}"
        return Finding(name, Verdict.SKIPPED, text, values=values)
    if _within(away, limit):
        return Finding(name, Verdict.OK, text, values=values)
    advice = "a collective returns wrong values; test the links (nccl-tests, the TPU's diagnostics)"
    return Finding(name, Verdict.WRONG, text, advice, values)


def _limit_of_sums(one: Steps) -> Deviation:
    """Returns how far the results may differ if a sum has another order.

    Rounding errors hardly move the results of the references. Here the batch depends on the number
    of devices, so the effect of rounding errors on it is measured.
    """
    errors = rounding.sensitivity(one, trials=_TRIALS)
    return Deviation(*(max(a, 3 * b) for a, b in zip(_EXACT, errors, strict=True)))


def _within(away: Deviation, limit: Deviation) -> bool:
    return all(a <= b for a, b in zip(away, limit, strict=True))  # not if NaN
