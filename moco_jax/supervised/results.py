"""What a supervised run reached: the last and the best, a table of several heads, the gain."""

import dataclasses
import math

_TOP5_ABOVE = 5  # classes; with five or fewer, top-5 is always right


@dataclasses.dataclass(frozen=True)
class Row:
    """What one head reached on the test images, percent.

    Attributes:
      name: of the head, such as 'lr=30'.
      top1: after the last step.
      top5: likewise; NaN where there are too few classes.
      best_top1: the highest of all evaluations, chosen on the test images themselves.
      best_epoch: of that one; NaN where there is but one.
      finite: whether its weights are.
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


def told(top1: float, top5: float, classes: int) -> str:
    """Returns 'top-1 71.10%  top-5 90.20%', without top-5 where it tells nothing."""
    text = f"top-1 {top1:.2f}%"
    return text + (f"  top-5 {top5:.2f}%" if has_top5(classes) else "")


def has_top5(classes: int) -> bool:
    """Returns whether top-5 tells anything."""
    return classes > _TOP5_ABOVE


def table(rows: list[Row]) -> str:
    """Returns the rows for people, the best last first named below."""
    top5 = not all(math.isnan(row.top5) for row in rows)
    width = max(len(row.name) for row in rows)
    several = not all(math.isnan(row.best_epoch) for row in rows)
    head = f"{'':{width}}   last top-1" + "   last top-5" * top5
    lines = [head + "   best top-1 (epoch)" * several]
    for row in rows:
        line = f"{row.name:{width}}   {row.top1:9.2f}%" + f"   {row.top5:9.2f}%" * top5
        line += f"   {row.best_top1:9.2f}% ({row.best_epoch:.4g})" * several
        lines.append(line if row.finite else f"{row.name:{width}}   not finite: a lower value")
    if len(rows) > 1:
        lines.append(
            f"highest: {best(rows).name}, {best(rows).top1:.2f}%, chosen on the test images: a "
            "figure to report wants the choice made on others"
        )
    return "\n".join(lines)


def gain(trained: tuple[float, float], baseline: tuple[float, float], name: str) -> str:
    """Returns three lines: pretrained, the baseline and the difference.

    Args:
      trained: last and best, percent.
      baseline: likewise.
      name: of the baseline.
    """
    return "\n".join(
        [
            f"{'pretrained':14}{trained[0]:6.2f}%  (best {trained[1]:.2f}%)",
            f"{name:14}{baseline[0]:6.2f}%  (best {baseline[1]:.2f}%)",
            f"{'gain':14}{trained[0] - baseline[0]:+6.2f} points after the last step",
        ]
    )
