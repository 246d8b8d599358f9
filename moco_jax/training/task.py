"""What the loop runs, whichever the task: a run, and what is told of it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.parallel.mesh import Layout

Scalars = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """What every run is made of; nothing in it changes while it runs.

    Attributes:
      config: validated.
      layout: where arrays lie.
      order: the images of each step.
      data: the training images.
      arrays: a pytree of device arrays that every step is given: of the data.
      step: jitted (state, arrays, batch, notices) -> (state, metrics).
      create: () -> the state at step 0; it has `step` and `params`.
      target: the abstract state, for restoring.
    """

    config: ConfigDict
    layout: Layout
    order: ShuffledOrder
    data: DataSet
    arrays: Any
    step: Any
    create: Callable[[], Any]
    target: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, and what is told of it.

    Attributes:
      run: what is trained.
      introduce: state -> lines that tell what is about to run.
      progress: scalars -> the part of the progress line that is the task's own.
      extra: step -> scalars to log besides the step's own metrics.
      evaluate: (state, step) -> (scalars, line), or None; one of the scalars is of the kind's
        `results`, or there are none, and nothing is told.
      every_epochs: between evaluations; the last step has one too.
      at_first: whether the state at step 0 is evaluated.
      hint: what often mends a loss that is not finite.
    """

    run: Run
    introduce: Callable[[Any], Iterable[str]]
    progress: Callable[[Scalars], str]
    extra: Callable[[int], Scalars]
    evaluate: Callable[[Any, int], tuple[Scalars, str]] | None
    every_epochs: float
    at_first: bool
    hint: str
