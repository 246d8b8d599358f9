"""The results of supervised runs: last and best, a table of several heads, the gain."""

import copy
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import TypeVar

from ml_collections import ConfigDict

from moco_jax.parallel import cluster

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one head on the test images, percent.

    Attributes:
      name: of the head, such as 'lr=30'.
      top1: after the last step.
      top5: after the last step; NaN for five or fewer classes.
      best_top1: the highest of all evaluations, chosen on the test images themselves.
      best_epoch: of that evaluation; NaN if there was only one.
      finite: whether the weights are finite.
    """

    name: str
    top1: float
    top5: float
    best_top1: float
    best_epoch: float
    finite: bool


def best(rows: list[Row]) -> Row:
    """Returns the row with the highest last top-1."""
    return max(rows, key=lambda row: (row.finite, row.top1))


def accuracy_text(top1: float, top5: float, classes: int) -> str:
    """Returns 'top-1 71.10%  top-5 90.20%'; without top-5 for few classes."""
    return f"top-1 {top1:.2f}%" + (f"  top-5 {top5:.2f}%" if has_top5(classes) else "")


def has_top5(classes: int) -> bool:
    """Returns whether top-5 is meaningful; with five or fewer classes it is always right."""
    return classes > 5


def table(rows: list[Row], images: int) -> str:
    """Returns a printable table of the rows; of several, the last line names the best.

    Args:
      rows: of the heads.
      images: number of test images; 0 if it is unknown.
    """
    top5 = not all(math.isnan(row.top5) for row in rows)
    base = f"{images} test images" if images else ""
    width = max(len(base), *(len(row.name) for row in rows))
    several = not all(math.isnan(row.best_epoch) for row in rows)
    head = f"{base:{width}}   last top-1" + "   last top-5" * top5
    lines = [head + "   best top-1 (epoch)" * several]
    for row in rows:
        line = f"{row.name:{width}}   {row.top1:9.2f}%" + f"   {row.top5:9.2f}%" * top5
        line += f"   {row.best_top1:9.2f}% ({row.best_epoch:.4g})" * several
        lines.append(line if row.finite else f"{row.name:{width}}   not finite: lower this value")
    if len(rows) > 1:
        top = best(rows).top1
        names = ", ".join(row.name for row in rows if row.top1 == top) or best(rows).name
        lines.append(
            f"highest last top-1: {top:.2f}% ({names}), chosen on the test images; to report a "
            "number, choose on other images"
        )
    return "\n".join(lines)


def with_baseline(
    config: ConfigDict,
    folder: pathlib.Path,
    train: Callable[[ConfigDict, pathlib.Path], Result],
    last_and_best: Callable[[Result], tuple[float, float]],
    *,
    name: str,
    metric: str,
) -> Result:
    """Trains on the encoder of the config; with `baseline` also without it, and prints the gain.

    Args:
      folder: the workdir; the workdir of the baseline is `from_scratch` in it.
      train: runs the task in a workdir.
      last_and_best: result -> percent after the last step, and of the best evaluation.
      name: of the baseline.
      metric: the name of the percentage.
    """
    result = train(config, folder)
    if config.baseline:
        scratch = copy.deepcopy(config)
        scratch.from_scratch, scratch.baseline = True, False
        cluster.say(f"\nthe same, {name}:")
        last, best = last_and_best(result)
        other_last, other_best = last_and_best(train(scratch, folder / "from_scratch"))
        cluster.say(
            f"\n{metric}\n"
            f"{'pretrained':14}{last:6.2f}%  (best {best:.2f}%)\n"
            f"{name:14}{other_last:6.2f}%  (best {other_best:.2f}%)\n"
            f"{'gain':14}{last - other_last:+6.2f} points after the last step"
        )
    return result
