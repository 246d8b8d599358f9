"""The linear protocol and fine-tuning: what they run, log and print."""

import math
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.sources.source import Sources
from moco_jax.models.encoder import described_groups, norm_groups
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.supervised import cached, results, step, validation
from moco_jax.supervised.accuracy import Scores
from moco_jax.supervised.kinds import KINDS
from moco_jax.supervised.run import SupervisedRun, build, fit_batch, fit_start, open_labelled
from moco_jax.supervised.start import begin
from moco_jax.supervised.step import SupervisedState
from moco_jax.terminal import style
from moco_jax.training import loop
from moco_jax.training.flat_config import flatten
from moco_jax.training.outputs import ending
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.task import Scalars, Task


class FrozenMoved(Exception):
    """A weight of the frozen encoder has changed."""


def evaluate(
    config: ConfigDict,
    folder: str | pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    sources: Sources | None = None,
    last: bool = True,
) -> list[results.Row]:
    """Trains a classifier on an encoder; returns the result of each head.

    Args:
      config: see `moco_jax.supervised.config`.
      folder: the workdir; the workdir of the baseline is `from_scratch` in it.
      devices: `jax.Device`s; default all.
      sources: images; default those of `config.data`.
      last: whether no other run of the same command follows.

    Raises:
      ValueError: for problems of the config, the encoder, the data or the workdir; the message
        names each.
      OSError: for files that are absent or can't be read.
      NotFinite: when no head has a finite loss any more.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    cluster.check_alike("config", str(flatten(config)))  # before any other exchange
    devices = jax.devices() if devices is None else devices
    # What is wrong with the batch for some number of images is wrong with any.
    validation.check(fit_batch(config, 10_000, len(devices)), len(devices))
    layout = make_layout(devices, **config.mesh)
    return results.with_baseline(
        config,
        pathlib.Path(folder),
        lambda config, folder: _evaluate_one(config, folder, layout, sources, last),
        lambda rows: (results.best(rows).top1, results.best(rows).best_top1),
        # The linear protocol trains no encoder: a random encoder stays random.
        name="random" if config.task == "linear" else "from scratch",
        metric="top-1",
    )


def _evaluate_one(
    config: ConfigDict,
    folder: pathlib.Path,
    layout: Layout,
    sources: Sources | None,
    last: bool,
) -> list[results.Row]:
    start = begin(config)
    cluster.say("\n".join(start.notes))
    try:
        start, sources = fit_start(start, folder, layout.devices, sources)
    except KeyboardInterrupt:  # while the images are listed
        raise loop.not_begun(signal.SIGINT) from None
    if config.task == "linear" and config.cached:
        opened, note = open_labelled(start.config, sources)
        cluster.say(note)
        return cached.evaluate(start, folder / "cached", layout, opened)
    make_task = lambda log: _task(build(start, layout, sources), log)  # noqa: E731
    kind, last = KINDS[config.task], last and not config.baseline
    finished = loop.train(start.config, folder, kind, make_task, last=last)
    rows = _rows(finished.run, finished.results)
    images = [line.get("test_images", 0) for line in finished.results]
    cluster.say(results.table(rows, int(images[-1])))
    if finished.state.frozen:
        cluster.say(check_frozen(finished.run, finished.state))
    return rows


def _task(run: SupervisedRun, log: MetricsLog) -> Task:
    heads = len(run.heads)
    top_rate = max(step.rates(run.config)) if run.config.task == "linear" else 1.0

    def progress(m: Scalars) -> str:
        live = m["live_heads"]
        diverged = "" if live == heads else f"  {live:.0f} of {heads} heads finite"
        return f"loss {m['loss']:.3f}  train top-1 {m['train_top1']:.1f}%{diverged}"

    return Task(
        run=run,
        introduce=lambda state: _introduce(run, state),
        progress=progress,
        extra=lambda at: {"lr": float(run.schedule(at - 1)) * top_rate},
        evaluate=lambda state, at: _evaluate(run, state, at, log),
        every_epochs=run.config.evaluate_every,
        at_first=False,
        hint=f"A lower --config.lr (now {run.config.lr}, for {run.config.lr_batch} images) often "
        "helps: the right learning rate depends on the size of the features.",
        reached=lambda lines: _reached(run, lines),
        advice=_advice,
    )


def _reached(run: SupervisedRun, lines: list[dict[str, float]]) -> str:
    """Returns the accuracy of the best head after the last evaluation."""
    if not _complete(run, lines):
        return ""
    top = results.best(_rows(run, lines))
    by = f" by {top.name}, best of {len(run.heads)} heads" if len(run.heads) > 1 else ""
    images = f" on {lines[-1]['test_images']:.0f} test images" if "test_images" in lines[-1] else ""
    return f"top-1 {top.top1:.2f}%{by}{images} at step {lines[-1]['step']}"


def _advice(folder: pathlib.Path) -> Iterator[str]:
    yield f"every evaluation is in {ending.shown(folder / 'metrics.jsonl')}"


def _introduce(run: SupervisedRun, state: SupervisedState) -> Iterator[str]:
    config = run.config
    yield from run.notes
    groups = described_groups(norm_groups(config))
    if state.frozen and run.start.backbone.batch_norm:
        groups = "batch norm frozen"
    if state.feature_stats:
        groups += f"; features normalised in {described_groups(config.bn_groups)}"
    yield (
        f"{config.model.name}, {config.task}: trains {run.layout.describe(state.params)}; "
        f"batch {config.batch_size}; {groups}"
    )
    rates = ", ".join(f"{rate:.4g}" for rate in step.rates(config))
    head = f", classifier x {config.head_lr:g}" if config.task == "finetune" else ""
    yield (
        f"peak lr {rates}{head} ({', '.join(run.heads)} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )


def _evaluate(
    run: SupervisedRun, state: SupervisedState, at: int, log: MetricsLog
) -> tuple[Scalars, str]:
    """Returns the accuracies of all heads, the highest without a head's name, and a line."""
    scores = run.scores(state.evaluated())
    top = int(np.argmax(scores.top1))
    scalars = {"top1": scores.top1[top], "top5": scores.top5[top], "test_loss": scores.loss[top]}
    names = run.heads if len(run.heads) > 1 else []
    for i, name in enumerate(names):
        scalars |= {f"top1/{name}": scores.top1[i], f"top5/{name}": scores.top5[i]}
        scalars[f"finite/{name}"] = float(np.isfinite(scores.loss[i]))
    if not results.has_top5(run.classes):
        scalars = {key: value for key, value in scalars.items() if not key.startswith("top5")}
    scalars = {key: float(v) for key, v in scalars.items() if math.isfinite(v)}
    epoch = at / run.order.steps_per_epoch
    scalars |= {"epoch": epoch, "test_images": scores.images}
    if at == len(run.order):
        row = results.best(_rows(run, [*log.results, {"step": at, **scalars}]))
        scalars |= {"last_top1": row.top1, "best_top1": row.best_top1, "best_epoch": row.best_epoch}
    line = results.accuracy_text(scores.top1[top], scores.top5[top], run.classes)
    if names:
        line += f" by {names[top]}, best of {len(names)} heads"
    line += f"  (epoch {epoch:.2f}, {scores.images} test images)"
    if not names:
        return scalars, line
    so_far = max((x["top1"], -x["epoch"]) for x in [*log.results, scalars] if "top1" in x)
    line += f"; best so far {so_far[0]:.2f}% (epoch {-so_far[1]:.4g})"
    return scalars, "\n".join([line, *_each(run, scores)])


def _each(run: SupervisedRun, scores: Scores) -> Iterator[str]:
    """Yields the accuracy of each head, as many heads a line as the terminal has room for."""
    texts = [
        f"{name} {top1:.2f}%" if math.isfinite(loss) else f"{name} diverged"
        for name, top1, loss in zip(run.heads, scores.top1, scores.loss, strict=True)
    ]
    length = max(map(len, texts))
    count = max(1, (style.width() - 2) // (length + 2))
    for start in range(0, len(texts), count):
        row = texts[start : start + count]
        yield "  " + "  ".join(text.ljust(length) for text in row).rstrip()
    if any(text.endswith("diverged") for text in texts):
        yield "  diverged: the learning rate is too high"


def _rows(run: SupervisedRun, lines: list[dict[str, float]]) -> list[results.Row]:
    """Returns the result of each head, from the log lines of all evaluations.

    Raises:
      ValueError: if no line has the results of all heads: somebody changed the log.
    """
    lines, ends = _complete(run, lines), _ends(run)
    if not lines:
        raise ValueError(
            f"metrics.jsonl has no evaluation with {', '.join(sorted(_needed(run)))}, which the "
            "run wrote; restore it from a copy, or give another --workdir"
        )
    rows = []
    for name, end in zip(run.heads, ends, strict=True):
        last, best = lines[-1], max(lines, key=lambda line: line["top1" + end])
        top5, finite = last.get("top5" + end, math.nan), bool(last.get("finite" + end, 1.0))
        rows.append(
            results.Row(name, last["top1" + end], top5, best["top1" + end], best["epoch"], finite)
        )
    return rows


def _ends(run: SupervisedRun) -> list[str]:
    """Returns what the metrics of each head end in."""
    return [f"/{name}" if len(run.heads) > 1 else "" for name in run.heads]


def _needed(run: SupervisedRun) -> set[str]:
    return {"epoch", *(f"top1{end}" for end in _ends(run))}


def _complete(run: SupervisedRun, lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns the log lines that have the results of all heads."""
    return [line for line in lines if _needed(run) <= line.keys()]


def check_frozen(run: SupervisedRun, state: SupervisedState) -> str:
    """Returns a line saying that the frozen encoder equals the one that was read, bit for bit.

    Raises:
      FrozenMoved: if it does not.
    """
    ours = {"params": state.frozen, "batch_stats": state.batch_stats}
    read = run.layout.put(run.start.variables, run.layout.replicated)
    compare = jax.jit(lambda a, b: run.layout.replicate(jax.tree.map(jnp.array_equal, a, b)))
    flat, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(compare(ours, read)))
    moved = [jax.tree_util.keystr(path) for path, same in flat if not same]
    if moved:
        raise FrozenMoved(
            f"{len(moved)} of {len(flat)} arrays of the frozen encoder differ from "
            f"{run.config.pretrained or 'the seed'}: {', '.join(moved[:5])}. Either the encoder "
            "was trained further after this run began, or the step changed it"
        )
    return f"the frozen weights are unchanged: {len(flat)} arrays are equal bit for bit"
