"""Supervised evaluation of an encoder: the linear protocol and fine-tuning, by the common loop."""

import copy
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax import checkpoints, cluster, logging, loop, notices
from moco_jax import config as config_lib
from moco_jax.data import loader
from moco_jax.data.order import ShuffledOrder
from moco_jax.data.sources import Sources, open_named
from moco_jax.data.views import evaluation_view, make_view
from moco_jax.evaluation import cached, mixing, results, step, validation
from moco_jax.evaluation.accuracy import Scores, make_scores
from moco_jax.evaluation.labels import labelled
from moco_jax.evaluation.start import Start, begin
from moco_jax.evaluation.step import SupervisedState
from moco_jax.mesh import Layout, make_layout
from moco_jax.optimizers import make_optimizer, make_schedule, peak_lr
from moco_jax.run import check_same_pictures

KINDS = {"linear": checkpoints.LINEAR, "finetune": checkpoints.FINETUNE}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a supervised run is made of; nothing in it changes while it runs.

    Attributes:
      config: resolved.
      layout: where arrays lie.
      order: the pictures of each step.
      data: the training pictures.
      arrays: `pictures`, the data's arrays, and `labels` i32[N].
      step: jitted (state, arrays, batch, notices) -> (state, metrics).
      schedule: step -> factor of the rates.
      create: () -> state at step 0.
      target: the abstract state.
      scores: a state's `evaluated()` -> Scores on the test pictures.
      classes: C.
      start: the encoder.
      notes: lines about the pictures.
    """

    config: ConfigDict
    layout: Layout
    order: ShuffledOrder
    data: loader.DataSet
    arrays: Any
    step: Any
    schedule: Callable[[int], jax.Array]
    create: Callable[[], SupervisedState]
    target: SupervisedState
    scores: Callable[[dict[str, Any]], Scores]
    classes: int
    start: Start
    notes: tuple[str, ...]

    @property
    def heads(self) -> list[str]:
        """The heads' names."""
        values = self.config.lr if isinstance(self.config.lr, tuple) else (self.config.lr,)
        return [f"lr={value:g}" for value in values]


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
      config: of the task; see `moco_jax.evaluation.config`.
      folder: the workdir; that of the baseline is `from_scratch` in it.
      devices: `jax.Device`s; default all.
      sources: pictures; default those that `config.data` names.

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
        say("\nthe same from scratch:")
        other = _evaluate_one(scratch, pathlib.Path(folder) / "from_scratch", layout, sources)
        reached = [(row.top1, row.best_top1) for row in map(results.best, (rows, other))]
        say("\n" + results.gain(*reached))
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
        opened, notes = _open(start.config, sources)
        say("\n".join(notes))
        return cached.evaluate(start, pathlib.Path(folder) / "cached", layout, opened)
    built: list[tuple[Run, logging.MetricsLog]] = []

    def make_task(log: logging.MetricsLog) -> loop.Task:
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


def _open(config: ConfigDict, sources: Sources | None) -> tuple[Sources, tuple[str, ...]]:
    """Returns labelled pictures to train on and to test on, and lines about them."""
    sources = open_named(config) if sources is None else sources
    train, told = labelled(sources.train, config)
    if sources.test is None or sources.test.labels is None:
        raise ValueError(
            f"{train.name} has no labelled test pictures; allowed: data.test_split that exists, or "
            "a data.held_out above 0"
        )
    return Sources(train, sources.test), (told,)


def build(start: Start, layout: Layout, sources: Sources | None) -> Run:
    """Returns the run, its data loaded, nothing compiled yet.

    Raises:
      ValueError: if the pictures can't be had, have no labels, or are fewer than a batch.
    """
    config = start.config
    sources, notes = _open(config, sources)
    assert sources.test is not None and sources.test.labels is not None
    data = loader.load(sources.train, config.data, layout)
    test = loader.load(sources.test, config.data, layout)
    check_same_pictures(sources.train, data, test)
    if len(data) < config.batch_size:
        raise ValueError(
            f"{sources.train.name} has {len(data)} labelled pictures to train on, fewer than "
            f"batch_size={config.batch_size}"
        )
    order = _order(config, len(data))
    classes = max(len(sources.train.class_names), int(sources.test.labels.max()) + 1)
    peak = 1.0 if config.task == "linear" else peak_lr(config)
    schedule = make_schedule(config, order.steps_per_epoch, peak)
    optimizer = make_optimizer(config, schedule, lambda params: step.factors(config, params))
    variables = layout.put(
        {"params": start.params, "batch_stats": start.batch_stats}, layout.replicated
    )
    init = jax.tree_util.Partial(step.init_state, config, start, classes, optimizer)
    shapes = jax.eval_shape(init, variables)
    shardings = step.state_shardings(shapes, layout)
    return Run(
        config=config,
        layout=layout,
        order=order,
        data=data,
        arrays=_with_labels(data, layout),
        step=_jit_step(
            config, data, step.make_step(config, start, optimizer, layout), classes, layout
        ),
        schedule=jax.jit(schedule),
        create=lambda: jax.jit(init, out_shardings=shardings)(variables),
        target=jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        ),
        scores=_scores(start, test, layout),
        classes=classes,
        start=start,
        notes=(*notes, f"test: {len(test)} pictures of {sources.test.name}, {classes} classes"),
    )


def _order(config: ConfigDict, pictures: int) -> ShuffledOrder:
    per_epoch = pictures // config.batch_size
    steps = config_lib.total_steps(config, per_epoch)
    return ShuffledOrder(config.seed, pictures, config.batch_size, steps)


def _with_labels(data: loader.DataSet, layout: Layout) -> dict[str, Any]:
    """Returns what the step is given of a data set: its arrays, and labels by index."""
    return {"pictures": data.arrays, "labels": layout.put(data.labels, layout.replicated)}


def _scores(start: Start, test: loader.DataSet, layout: Layout) -> Callable:
    data, dtype = start.config.data, jnp.dtype(start.config.dtype)
    view = evaluation_view(data.image_size, data.eval_resize, data.mean, data.std, dtype)
    arrays = _with_labels(test, layout)
    return make_scores(test, arrays, start.backbone, view, start.config.batch_size, layout)


def _jit_step(
    config: ConfigDict, data: loader.DataSet, train_step: Callable, classes: int, layout: Layout
):
    """Returns (state, arrays, batch, notices) -> (state, metrics), jitted, the state donated."""
    prepared, dtype = config.data, jnp.dtype(config.dtype)
    view = make_view(config.view, prepared.image_size, prepared.mean, prepared.std, dtype)
    tuned = config.task == "finetune"

    def whole_step(state, arrays, batch, notes):
        images, sizes = data.pictures(arrays["pictures"], batch)
        labels = jnp.take(arrays["labels"], data.indices(batch))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
        images = layout.shard(view(jax.random.fold_in(key, 0), images, sizes))
        targets = mixing.soften(labels, classes, config.label_smoothing if tuned else 0.0)
        if tuned:
            images, targets = mixing.mix(jax.random.fold_in(key, 1), images, targets, config)
            images = layout.shard(images)
        state, metrics = train_step(state, images, targets)
        return state, metrics | layout.replicate(notices.combined(notes))

    return jax.jit(whole_step, donate_argnums=0)


def _task(run: Run, log: logging.MetricsLog) -> loop.Task:
    heads = len(run.heads)

    def progress(m: loop.Scalars) -> str:
        dead = (
            "" if m["live_heads"] == heads else f"  {m['live_heads']:.0f} of {heads} heads finite"
        )
        return f"loss {m['loss']:.3f}  train top-1 {m['train_top1']:.1f}%{dead}"

    return loop.Task(
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


def _evaluate(
    run: Run, state: SupervisedState, at: int, log: logging.MetricsLog
) -> tuple[loop.Scalars, str]:
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
    scalars |= {"epoch": epoch, "test_pictures": scores.pictures}
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
    return scalars, f"{told}  (epoch {epoch:.2f}, {scores.pictures} test pictures)"


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
