"""Curves that are known of a recipe; the report draws them behind those of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moco_jax.pages.record import Record

Points = Sequence[tuple[float, float]]  # epoch and value


class Reference(NamedTuple):
    """A run that others, or this project, have reported.

    Attributes:
      name: of the curve, with its data if they differ.
      config: the keys that decide the curve, and their values.
      curves: metric -> points.
    """

    name: str
    config: Mapping[str, object]
    curves: Mapping[str, Points]


REFERENCES = (
    # The log in the demo notebook of facebookresearch/moco; its loss is the mean of an epoch.
    Reference(
        "the reference's log, lossless images",
        {"name": "cifar10_asymmetric", "epochs": 200, "batch_size": 512, "lr": 0.06},
        {
            "knn_top1": (
                *((1, 31.98), (5, 37.95), (10, 48.03), (20, 61.38), (30, 67.05), (50, 73.30)),
                *((75, 75.93), (100, 78.06), (125, 79.92), (150, 81.18), (175, 82.42)),
                (200, 82.58),
            ),
            "loss": (
                *((1, 6.957), (2, 7.250), (5, 6.862), (10, 5.991), (20, 4.341), (50, 3.195)),
                *((100, 2.726), (200, 2.272)),
            ),
        },
    ),
    # benchmarks/results/digits.md, on 2 CPU cores.
    Reference(
        "measured for this recipe",
        {"name": "digits", "epochs": 36, "batch_size": 64, "lr": 0.03},
        {
            "knn_top1": (
                *((0, 23.75), (6, 46.92), (12, 61.42), (18, 66.67), (24, 70.67), (30, 71.58)),
                (36, 72.42),
            )
        },
    ),
)


def known(record: Record, metrics: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Returns what is known of a run's recipe: name -> steps and values, for these metrics."""
    lengths = [line["step"] / line["epoch"] for line in record.lines if line.get("epoch")]
    if not lengths:
        return {}
    return {
        reference.name: ([epoch * lengths[-1] for epoch, _ in points], [y for _, y in points])
        for reference in REFERENCES
        if all(record.config.get(key) == value for key, value in reference.config.items())
        for metric, points in reference.curves.items()
        if metric in metrics
    }
