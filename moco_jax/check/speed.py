"""How fast is a training step, and how fast should it be on this chip?"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax import configs
from moco_jax.check.findings import Finding, Verdict
from moco_jax.check.timing import median_seconds, threads
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.notices import Notices
from moco_jax.plan.forecast import Forecast, Run
from moco_jax.plan.hardware import CHIPS, GIB, kind_of
from moco_jax.plan.program import Program, abstract_step, counted_flops, counting_layout, described
from moco_jax.plan.topology import Topology
from moco_jax.pretraining.method import make_method

_EXPERIMENTS = {"ResNet-50, v2": ("imagenet", "v2"), "ViT-S, v3": ("imagenet_v3", "vit_s")}
_IMAGES = 1_281_167  # of ImageNet
_BATCHES = (256, 128, 64, 32, 16)  # images of a device
_GIB_PER_IMAGE = 0.12  # of a ResNet-50 in bfloat16, with its temporaries
_SECONDS = 0.5  # of a turn, about


class Timed(NamedTuple):
    """A step that is compiled for all devices.

    Attributes:
      name: of the network and the method.
      config: of the run.
      step: the compiled step of a run, with augmentation.
      program: facts about it.
    """

    name: str
    config: ConfigDict
    step: Any
    program: Program


def names() -> list[str]:
    """Returns the names of the steps that are timed."""
    return list(_EXPERIMENTS)


def checks() -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yields the name of each step and its check.

    The steps are compiled side by side where processes need not agree on an order. Nothing else
    runs while a step is timed.
    """
    with threads(1 if jax.process_count() > 1 else len(_EXPERIMENTS)) as pool:
        waiting = {name: pool.submit(prepare, name) for name in _EXPERIMENTS}
        wait(waiting.values())
    for name, timed in waiting.items():
        yield name, functools.partial(_checked, timed)


def _checked(timed: Future[Timed]) -> Finding:
    return check(timed.result())


def prepare(name: str) -> Timed:
    """Returns a step that is compiled for all devices: smaller on CPUs."""
    file, variant = _EXPERIMENTS[name]
    config = getattr(configs, file).get_config(variant)
    layout, device = make_layout(), jax.local_devices()[0]
    if device.platform == "cpu":
        _shrink(config)
        each = 16
    else:
        config.dtype = "bfloat16"
        limit = (device.memory_stats() or {}).get("bytes_limit", 0) / GIB
        each = next((b for b in _BATCHES if b * _GIB_PER_IMAGE <= limit), _BATCHES[-1])
    config.batch_size = each * layout.devices
    if config.bn_groups > 1:
        config.bn_groups = math.lcm(config.bn_groups, layout.devices)
    config.queue_size = -(-config.queue_size // config.batch_size) * config.batch_size
    step, *arguments = abstract_step(config, layout, _IMAGES)
    begun = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    seconds, batch = time.perf_counter() - begun, each * config.data.canvas**2 * 3
    program = described(compiled, batch, seconds, device.platform)
    if device.platform == "gpu":
        # Its compiler counts a part of the operations only.
        flops = math.nan
        with contextlib.suppress(ValueError):
            flops = counted_flops(config, counting_layout(), _IMAGES) / layout.devices
        program = dataclasses.replace(program, flops=flops)
    return Timed(name, config, compiled, program)


def _shrink(config: ConfigDict) -> None:
    """Makes a step small enough for a CPU."""
    config.dtype, config.data.image_size, config.data.canvas = "float32", 32, 64
    config.queue_size, config.model.dim = 1024, 32
    if config.model.name.startswith("vit"):
        config.model.name, config.model.width, config.model.heads = "vit_tiny", 1 / 3, 4
        config.model.depth, config.model.patch, config.model.hidden = 2, 8, 64
    else:
        config.model.name, config.model.width, config.model.stem = "resnet10", 0.25, "small"


def check(timed: Timed) -> Finding:
    """Returns the images/s of a step; slow if a chip of this kind should reach more."""
    config = timed.config
    seconds = _seconds(timed)
    rate = config.batch_size / seconds
    device = jax.local_devices()[0]
    text = f"{rate:,.0f} images/s, batch {config.batch_size}, {config.dtype}"
    values: dict[str, Any] = {"images_per_second": rate, "batch_size": config.batch_size}
    values |= {"compile_seconds": timed.program.compile_seconds, "dtype": config.dtype}
    forecast = _forecast(timed, device.device_kind)
    if forecast is None:
        if device.platform == "cpu":
            text += ", a small network; nothing is expected of a CPU"
        else:
            text += f"; nothing is expected of the chip {device.device_kind}, which is unknown"
        return Finding(timed.name, Verdict.OK, text, values=values)
    used = forecast.flops / seconds / forecast.topology.chip.peak_flops
    if not math.isnan(used):
        text += f", {used:.0%} of the peak FLOP/s"
        values["model_flops_utilisation"] = used
    low, high = forecast.range
    text += f"; expected {low:,.0f} to {high:,.0f}, bound by {forecast.bound}"
    values["expected"] = [low, high]
    if jax.process_count() > 1 and not forecast.topology.chip.is_tpu:
        text += " without the network between hosts, which is not known"
        low = 0.0
    if rate >= low or math.isnan(low):
        return Finding(timed.name, Verdict.OK, text, values=values)
    advice = (
        "another program may use the devices, or their clocks are lowered (nvidia-smi -q -d "
        "PERFORMANCE); other XLA_FLAGS than the defaults may cost speed"
    )
    return Finding(timed.name, Verdict.SLOW, text, advice, values)


def _seconds(timed: Timed) -> float:
    """Returns the seconds of a step on images that are on the devices."""
    config, layout = timed.config, make_layout()
    size, canvas = config.batch_size, config.data.canvas
    rows = len(layout.rows(size))
    images = jax.random.bits(jax.random.key(0), (rows, canvas, canvas, 3), jnp.uint8)
    batch = layout.put_batch(
        {
            "images": jax.device_get(images),
            "sizes": jax.device_get(jnp.full((rows, 2), canvas, jnp.int32)),
            "indices": layout.rows(size).astype("int32"),
            "readable": jax.device_get(jnp.ones(rows, bool)),
        }
    )
    notices = Notices(layout).put(stop=0, bad_images=0)
    state = make_method(config, layout, _IMAGES).create_state()

    def step() -> Any:
        nonlocal state
        state, metrics = timed.step(state, {}, batch, notices)
        return metrics

    # All processes run the same number of steps: one more would wait for the others forever.
    times = cluster.largest(max(1, round(_SECONDS / median_seconds(step))))
    return median_seconds(step, times)


def _forecast(timed: Timed, device_kind: str) -> Forecast | None:
    """Returns what the plan expects of the step, None for an unknown chip."""
    kind = kind_of(device_kind)
    if kind is None:
        return None
    config, chips = timed.config, jax.device_count() // CHIPS[kind].devices_per_chip
    run = Run(config.batch_size, _IMAGES, 1, config.dtype, streamed=False)
    return Forecast(Topology(kind, (max(1, chips),)), timed.program, run)
