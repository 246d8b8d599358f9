"""Formats a study's results as a table and a plot."""

import collections
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence

from moco_jax.ablate.grid import Result, oldest_cosine, read_lines, workdir
from moco_jax.training.outputs.console import duration


def table(knob: str, results: Sequence[Result]) -> str:
    """Returns a Markdown table with one row per variant: mean ± standard deviation over seeds."""
    head = (knob, "runs", *_COLUMNS)
    lines = [row(head), row(["---"] * len(head))]
    for label, runs in _by_label(results).items():
        ended = [run for run in runs if not run.failure]
        cells = [cell(ended) for cell in _COLUMNS.values()]
        count = str(len(ended))
        failures = [run.failure for run in runs if run.failure]
        if failures:
            count += f", {len(failures)} failed ({failures[0]})"
        lines.append(row([label, count, *cells]))
    return "\n".join(lines)


def _by_label(results: Iterable[Result]) -> dict[str, list[Result]]:
    grouped = collections.defaultdict(list)
    for result in results:
        grouped[result.label].append(result)
    return grouped


def _above_chance(run: Result) -> float | None:
    return None if run.loss is None or run.chance is None else run.loss - run.chance


def row(cells: Iterable[str]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def mean_and_spread(values: Iterable[float | None], digits: int) -> str:
    """Returns 'mean ± standard deviation' of the values that are not None."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


# Titles to cells, for the runs of a variant that did not fail.
_COLUMNS: dict[str, Callable[[list[Result]], str]] = {
    "kNN top-1, %": lambda runs: mean_and_spread([run.knn_top1 for run in runs], 2),
    "pretext accuracy, %": lambda runs: mean_and_spread([run.accuracy for run in runs], 1),
    "loss - chance loss": lambda runs: mean_and_spread(map(_above_chance, runs), 2),
    "oldest keys' cosine": lambda runs: mean_and_spread([run.key_cosine for run in runs], 3),
    "time of all steps": lambda runs: (
        duration(statistics.median(run.seconds or 0 for run in runs)) if runs else "-"
    ),
    "memory per device, MB": lambda runs: mean_and_spread([run.megabytes for run in runs][:1], 0),
}


def plot(knob: str, results: Sequence[Result], folder: pathlib.Path, out: pathlib.Path) -> None:
    """Plots kNN by variant, and kNN, pretext accuracy and drift by step.

    It writes no plot if all runs failed.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grouped = _by_label(run for run in results if not run.failure)
    if not grouped:
        return
    figure, (left, *curves) = plt.subplots(1, 4, figsize=(15, 3.2), layout="constrained")
    for position, (label, runs) in enumerate(grouped.items()):
        color = f"C{position}"
        finals = [run.knn_top1 for run in runs if run.knn_top1 is not None]
        left.plot([position] * len(finals), finals, "o", color=color, alpha=0.5)
        if finals:
            left.plot(position, statistics.mean(finals), "_", color=color, ms=24)
        for number, run in enumerate(runs):
            lines = read_lines(workdir(folder, label, run.seed) / "metrics.jsonl")
            for axes, measured in zip(curves, _MEASURED.values(), strict=True):
                known = [line for line in lines if measured(line) is not None]
                steps, heights = [line["step"] for line in known], list(map(measured, known))
                axes.plot(steps, heights, color=color, label=None if number else label, lw=1)
    left.set_xticks(range(len(grouped)), [label.replace("_", "\n") for label in grouped])
    left.set(xlabel=knob, title="final kNN top-1, %")
    for axes, title in zip(curves, _MEASURED, strict=True):
        axes.set(xlabel="step", title=title)
    curves[0].legend(fontsize="small")
    figure.savefig(out, dpi=110)
    plt.close(figure)


# Curve titles to values in a line of the metrics; None if the line has none.
_MEASURED: dict[str, Callable[[dict[str, float]], float | None]] = {
    "kNN top-1, %": lambda line: line.get("knn_top1"),
    "pretext accuracy, %": lambda line: line.get("accuracy"),
    "oldest keys' cosine": oldest_cosine,
}
