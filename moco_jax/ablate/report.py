"""A study's results as a table and as a plot."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from moco_jax.ablate.grid import Result, workdir
from moco_jax.logging import duration

_COLUMNS = (
    "kNN top-1, %",
    "pretext, %",
    "loss less chance",
    "oldest keys' cosine",
    "time of the steps",
    "MB a device",
)


def table(knob: str, results: Sequence[Result]) -> str:
    """Returns a Markdown table, a row a variant: means, and the spread where there are seeds."""
    head = (knob, "runs", *_COLUMNS)
    lines = [_row(head), _row(["---"] * len(head))]
    for label, runs in _by_label(results).items():
        ended = [run for run in runs if not run.failure]
        cells = [
            _spread([run.knn_top1 for run in ended], 2),
            _spread([run.accuracy for run in ended], 1),
            _spread([_less_chance(run) for run in ended], 2),
            _spread([run.key_cosine for run in ended], 3),
            duration(statistics.median(run.seconds or 0 for run in ended)) if ended else "-",
            _spread([run.megabytes for run in ended][:1], 0),
        ]
        count = str(len(ended))
        failed = [run for run in runs if run.failure]
        if failed:
            count += f", {len(failed)} failed ({failed[0].failure})"
        lines.append(_row([label, count, *cells]))
    return "\n".join(lines)


def _by_label(results: Iterable[Result]) -> dict[str, list[Result]]:
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.label, []).append(result)
    return grouped


def _less_chance(run: Result) -> float | None:
    return None if run.loss is None or run.chance is None else run.loss - run.chance


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Returns 'mean +- standard deviation' of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def plot(knob: str, results: Sequence[Result], folder: pathlib.Path, out: pathlib.Path) -> None:
    """Draws kNN against the knob, and kNN and pretext accuracy against epochs.

    Raises:
      ImportError: without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grouped = _by_label(run for run in results if not run.failure)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for position, (label, runs) in enumerate(grouped.items()):
        color = f"C{position}"
        reached = [run.knn_top1 for run in runs if run.knn_top1 is not None]
        left.plot([position] * len(reached), reached, "o", color=color, alpha=0.5)
        if reached:
            left.plot(position, statistics.mean(reached), "_", color=color, ms=24)
        for number, run in enumerate(runs):
            lines = _lines(workdir(folder, label, run.seed) / "metrics.jsonl")
            name = None if number else label
            _curve(middle, lines, "knn_top1", color, name)
            _curve(right, lines, "accuracy", color, name)
    left.set_xticks(range(len(grouped)), list(grouped))
    left.set(xlabel=knob, title="kNN top-1 at the end, %")
    middle.set(xlabel="step", title="kNN top-1, %")
    right.set(xlabel="step", title="pretext accuracy, %")
    middle.legend(fontsize="small")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _lines(path: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curve(axes, lines: list[dict[str, float]], key: str, color: str, label: str | None) -> None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=label, lw=1)
