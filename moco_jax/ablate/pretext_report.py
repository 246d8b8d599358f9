"""The plan and the results of the study of pretexts as tables and a plot."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence

from moco_jax.ablate.arms import UNTRAINED
from moco_jax.ablate.pretext import BUDGETS, Job
from moco_jax.ablate.pretext_runs import Result
from moco_jax.ablate.report import mean_and_spread, row
from moco_jax.training.outputs.console import duration

PLAN = ("equal", "arm", "steps", "GFLOP a step", "TFLOP")
_PIXELS, _NONE = "raw pixels", "-"  # an arm and a budget
_MEASURES = {
    "kNN top-1, %": lambda run: run.knn_top1,
    "linear top-1, %": lambda run: run.linear_top1,
    "fine-tuned top-1, %": lambda run: run.finetune_top1,
}


def listing(jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
    """Yields a row of the columns `PLAN` for each arm and length."""
    for job in jobs:
        steps = " + ".join(f"{steps:,}" for steps in job.steps) or "0"
        each = " + ".join(f"{phase.flops / 1e9:,.3g}" for phase in job.phases) or "-"
        yield _equal(job.budgets), job.arm, steps, each, f"{job.flops / 1e12:,.4g}"


def _equal(budgets: Sequence[str]) -> str:
    return " and ".join(budgets)


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table: a row for each arm and length, mean ± deviation over seeds."""
    head = ("equal", "arm", "runs", "steps", "TFLOP", *_MEASURES, "time")
    lines = [row(head), row(["---"] * len(head))]
    for (equal, arm), runs in _rows(results).items():
        ended = [run for run in runs if not run.failure]
        count = str(len(ended))
        failures = [run.failure for run in runs if run.failure]
        if failures:
            count += f", {len(failures)} failed ({failures[0]})"
        steps = " + ".join(f"{steps:,}" for steps in runs[0].steps) or "-"
        cost = f"{runs[0].flops / 1e12:,.4g}" if runs[0].flops else "-"
        seconds = [run.seconds for run in ended if run.seconds is not None]
        time = duration(statistics.median(seconds)) if seconds else "-"
        cells = [mean_and_spread(map(measure, ended), 2) for measure in _MEASURES.values()]
        lines.append(row([equal, arm, count, steps, cost, *cells, time]))
    return "\n".join(lines)


def _rows(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Returns the runs of each row of the table by budget and arm: first what is not trained."""
    before = {run.seed: run for run in reversed(results) if run.untrained_top1 is not None}
    scratch = {run.seed: run for run in results if run.arm == UNTRAINED}
    rows: dict[tuple[str, str], list[Result]] = {}
    for seed in sorted(before.keys() | scratch.keys()):
        run = scratch.get(seed, Result(UNTRAINED, seed, ()))
        if seed in before:
            pixels = Result(_PIXELS, seed, (), knn_top1=before[seed].pixels_top1)
            rows.setdefault((_NONE, _PIXELS), []).append(pixels)
            run = dataclasses.replace(run, knn_top1=before[seed].untrained_top1)
        rows.setdefault((_NONE, UNTRAINED), []).append(run)
    for run in results:
        for budget in run.budgets if run.arm != UNTRAINED else ():
            rows.setdefault((budget, run.arm), []).append(run)
    order = (_NONE, *BUDGETS)
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0][0])))


def plot(results: Sequence[Result], out: pathlib.Path) -> None:
    """Plots each measure by arm, a point for each seed and a bar for the mean, by budget.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = {key: [run for run in runs if not run.failure] for key, runs in _rows(results).items()}
    arms = list(dict.fromkeys(arm for _, arm in rows))
    budgets = list(dict.fromkeys(budget for budget, _ in rows))
    figure, panels = plt.subplots(1, len(_MEASURES), figsize=(15, 4), layout="constrained")
    for axes, (title, measure) in zip(panels, _MEASURES.items(), strict=True):
        for (budget, arm), runs in rows.items():
            _points(axes, arms.index(arm), budgets.index(budget), runs, measure)
        names = [arm.replace("_then_", "\nthen ").replace("_", " ") for arm in arms]
        axes.set_xticks(range(len(arms)), names, rotation=30, ha="right")
        axes.set(title=title)
        axes.grid(axis="y", alpha=0.3)
    for number, budget in enumerate(budgets):
        label = "not trained" if budget == _NONE else f"equal {budget}"
        panels[0].plot([], [], "o", color=f"C{number}", label=label)
    panels[0].legend(fontsize="small")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _points(
    axes, arm: int, budget: int, runs: Sequence[Result], measure: Callable[[Result], float | None]
) -> None:
    """Draws the values of a row of the table, beside those of the other budgets."""
    values = [value for run in runs if (value := measure(run)) is not None]
    if not values:
        return
    position, color = arm + 0.2 * (budget - 1), f"C{budget}"
    axes.plot([position] * len(values), values, "o", color=color, alpha=0.5)
    axes.plot(position, statistics.mean(values), "_", color=color, ms=20)
