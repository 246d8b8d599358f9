"""What the loop runs for every task: a run, and what it prints about the run."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.source import Source, fingerprint
from moco_jax.parallel.mesh import Layout

Scalars = dict[str, float]

_CLASSES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Content:
    """What a run uses besides its config, such as its images. A resumed run needs the same.

    Attributes:
      description: for messages.
      fingerprint: equal for the same content, wherever it is.
      may_change: whether `data.may_change` lets a run continue on another one.
    """

    description: str
    fingerprint: str
    may_change: bool = False


def image_content(source: Source) -> Content:
    """Returns the identity of images, of their labels and classes."""
    classes = source.class_names
    shown = ", ".join(classes[:_CLASSES_SHOWN]) + ", ..." * (len(classes) > _CLASSES_SHOWN)
    labels = f", {len(classes)} classes: {shown}" if classes else ""
    description = f"{len(source)} images of {source.name}{labels}"
    return Content(description, fingerprint(source), may_change=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of every run; nothing in it changes during the run.

    Attributes:
      config: validated.
      layout: the devices and shardings.
      order: the images of each step.
      data: the training images.
      arrays: a pytree of device arrays of the data, an argument of every step.
      step: jitted (state, arrays, batch, notices) -> (state, metrics).
      create: () -> the state at step 0; it has `step` and `params`.
      target: the abstract state, for restoring.
      contents: what the run uses besides its config, by name, such as "images".
    """

    config: ConfigDict
    layout: Layout
    order: ShuffledOrder
    data: DataSet
    arrays: Any
    step: Any
    create: Callable[[], Any]
    target: Any
    contents: Mapping[str, Content] = dataclasses.field(default_factory=dict, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Task:
    """A run and the task's own part of the loop.

    Attributes:
      run: what is trained.
      introduce: state -> lines about the run, printed before its first step.
      progress: scalars -> the task's own part of the progress line.
      extra: step -> scalars to log besides the metrics of the step.
      evaluate: (state, step) -> (scalars, line), or None; without scalars nothing is logged or
        printed, else one of them is in the `results` of the kind.
      every_epochs: between evaluations; the last step has one too.
      at_first: whether the state at step 0 is evaluated.
      hint: what often helps when the loss is not finite.
      begin: called before the first step, with the first step whose images and views are those of
        this config.
      show: called with the first batch of a run that starts at step 0.
      reached: log lines of all evaluations -> a line about the result so far, or "".
      verdict: log lines, in order -> a line on whether the run works, or "".
      advice: the workdir -> lines about what to do with the finished run.
    """

    run: Run
    introduce: Callable[[Any], Iterable[str]]
    progress: Callable[[Scalars], str]
    extra: Callable[[int], Scalars]
    evaluate: Callable[[Any, int], tuple[Scalars, str]] | None
    every_epochs: float
    at_first: bool
    hint: str
    begin: Callable[[int], None] = lambda since: None
    show: Callable[[Any], None] = lambda batch: None
    reached: Callable[[list[Scalars]], str] = lambda results: ""
    verdict: Callable[[list[Scalars]], str] = lambda lines: ""
    advice: Callable[[pathlib.Path], Iterable[str]] = lambda workdir: ()


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that reached its last step.

    Attributes:
      state: after the last step.
      run: as the task built it.
      results: the log lines of all its evaluations, those before a resume included.
    """

    state: Any
    run: Any
    results: list[Scalars]
