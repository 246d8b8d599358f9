"""Supervised evaluation of an encoder: the linear protocol and fine-tuning, by the common loop."""

import copy
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.sources.opening import Sources
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.supervised import cached, results, step, validation
from moco_jax.supervised.run import Run, build, open_labelled
from moco_jax.supervised.start import begin
from moco_jax.supervised.step import SupervisedState
from moco_jax.training import checkpoints, loop
from moco_jax.training.metrics import MetricsLog
from moco_jax.training.task import Scalars, Task

KINDS = {"linear": checkpoints.LINEAR, "finetune": checkpoints.FINETUNE}


class FrozenMoved(Exception):
    """A weight of the frozen encoder is no longer what it was."""


def evaluate(
    config: ConfigDict,
    folder: str | pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    sources: Sources | None = None,
) -> list[results.Row]:
    """Trains a classifier on an encoder as the config says; returns what each head reached.

    Args:
      config: of the task; see `moco_jax.supervised.config`.
      folder: the workdir; that of the baseline is `from_scratch` in it.
      devices: `jax.Device`s; default all.
      sources: images; default those that `config.data` names.

    Raises:
      ValueError: for problems of the config, the encoder, the data or the workdir, each named.
      OSError: for files that aren't there, or may not be read.
      NotFinite: when no head's loss is a number any more.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    devices = jax.devices() if devices is None else devices
    validation.check(config, len(devices))
    layout = make_layout(devices, **config.mesh)
    rows = _evaluate_one(config, folder, layout, sources)
    if config.baseline:
        scratch = copy.deepcopy(config)
        scratch.from_scratch, scratch.baseline = True, False
        # An encoder that is not trained is not "from scratch": it stays as it was drawn.
        name = "random" if config.task == "linear" else "from scratch"
        say(f"\nthe same, {name}:")
        other = _evaluate_one(scratch, pathlib.Path(folder) / "from_scratch", layout, sources)
        trained, baseline = ((r.top1, r.best_top1) for r in map(results.best, (rows, other)))
        say("\n" + results.gain(trained, baseline, name))
    return rows


def say(text: str) -> None:
    """Prints on process 0."""
    if cluster.is_first():
        print(text, flush=True)


def _evaluate_one(
    config: ConfigDict, folder: str | pathlib.Path, layout: Layout, sources: Sources | None
) -> list[results.Row]:
    """Evaluates one encoder."""
    start = begin(config)
    for note in start.notes:
        say(note)
    if config.task == "linear" and config.cached:
        opened, notes = open_labelled(start.config, sources)
        say("\n".join(notes))
        return cached.evaluate(start, pathlib.Path(folder) / "cached", layout, opened)
    built: list[tuple[Run, MetricsLog]] = []

    def make_task(log: MetricsLog) -> Task:
        run = build(start, layout, sources)
        built.append((run, log))
        return _task(run, log)

    state = loop.train(start.config, layout, folder, KINDS[config.task], make_task)
    [(run, log)] = built
    rows = _rows(run, log.results)
    say(results.table(rows))
    if state.frozen:
        say(check_frozen(run, state))
    return rows


def _task(run: Run, log: MetricsLog) -> Task:
    heads = len(run.heads)

    def progress(m: Scalars) -> str:
        dead = (
            "" if m["live_heads"] == heads else f"  {m['live_heads']:.0f} of {heads} heads finite"
        )
        return f"loss {m['loss']:.3f}  train top-1 {m['train_top1']:.1f}%{dead}"

    return Task(
        run=run,
        introduce=lambda state: _introduce(run, state),
        progress=progress,
        extra=lambda at: {"lr": float(run.schedule(at - 1)) * max(_unit_rates(run.config))},
        evaluate=lambda state, at: _evaluate(run, state, at, log),
        every_epochs=run.config.evaluate_every,
        at_first=False,
        hint=f"A lower --config.lr (now {run.config.lr}, for {run.config.lr_batch} images) often "
        "mends it: the rate that suits depends on how large the features are.",
    )


def _unit_rates(config: ConfigDict) -> tuple[float, ...]:
    """Returns the heads' rates over the schedule's value: 1 where the schedule is the rate."""
    return step.rates(config) if config.task == "linear" else (1.0,)


def _introduce(run: Run, state: SupervisedState) -> Iterator[str]:
    config = run.config
    yield from run.notes
    groups = "batch norm frozen" if state.frozen else f"{config.bn_groups} batch-norm groups"
    yield (
        f"{config.model.name}, {config.task}: trained are {run.layout.describe(state.params)}; "
        f"batch {config.batch_size}; {groups}"
    )
    rates = ", ".join(f"{rate:.4g}" for rate in step.rates(config))
    head = f", the classifier's x {config.head_lr:g}" if config.task == "finetune" else ""
    yield (
        f"lr {rates} at its peak{head} ({', '.join(run.heads)} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )


def _evaluate(run: Run, state: SupervisedState, at: int, log: MetricsLog) -> tuple[Scalars, str]:
    """Returns the accuracies of all heads, the highest without a name, and what is told."""
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
        rows = _rows(run, [*log.results, {"step": at, **scalars}])
        row = results.best(rows)
        scalars |= {"last_top1": row.top1, "best_top1": row.best_top1, "best_epoch": row.best_epoch}
    told = results.told(scores.top1[top], scores.top5[top], run.classes)
    dead = [name for i, name in enumerate(names) if not np.isfinite(scores.loss[i])]
    if names:
        told += f" by {names[top]} of {len(names)} heads"
    if dead:
        told += f"; not finite any more, their rate is too high: {', '.join(dead)}"
    return scalars, f"{told}  (epoch {epoch:.2f}, {scores.images} test images)"


def _rows(run: Run, lines: list[dict[str, float]]) -> list[results.Row]:
    """Returns what each head reached, from the log's lines of evaluations."""
    rows = []
    for name in run.heads:
        end = f"/{name}" if len(run.heads) > 1 else ""
        last, best = lines[-1], max(lines, key=lambda line: line["top1" + end])
        rows.append(
            results.Row(
                name,
                last["top1" + end],
                last.get("top5" + end, math.nan),
                best["top1" + end],
                best["epoch"],
                bool(last.get("finite" + end, 1.0)),
            )
        )
    return rows


def check_frozen(run: Run, state: SupervisedState) -> str:
    """Returns a line that says that the frozen encoder is what was read, bit for bit.

    Raises:
      FrozenMoved: if it is not.
    """
    ours = {"params": state.frozen, "batch_stats": state.batch_stats}
    read = {"params": run.start.params, "batch_stats": run.start.batch_stats}
    read = run.layout.put(read, run.layout.replicated)
    compare = jax.jit(lambda a, b: run.layout.replicate(jax.tree.map(jnp.array_equal, a, b)))
    flat, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(compare(ours, read)))
    moved = [jax.tree_util.keystr(path) for path, same in flat if not same]
    if moved:
        raise FrozenMoved(
            f"{len(moved)} of {len(flat)} arrays of the frozen encoder differ from what "
            f"{run.config.pretrained or 'the seed'} holds: {', '.join(moved[:5])}. Either it was "
            "trained on since this run began, or the step moved it"
        )
    return f"no frozen weight has moved: {len(flat)} arrays are equal bit for bit"
