"""The evaluations of a pretraining run: kNN, a linear classifier, health and the drift of keys."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from moco_jax.contrastive.state import TrainState
from moco_jax.health.probe import linear_top1
from moco_jax.health.verdict import Verdict
from moco_jax.pretraining.run import PretrainRun
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.task import Scalars


def evaluate(
    run: PretrainRun, log: MetricsLog, state: TrainState, step: int
) -> tuple[Scalars, str]:
    """Runs the monitors; returns what they measured, and a line. Logs histograms."""
    scalars, lines = {}, [f"epoch {step / run.order.steps_per_epoch:.2f}"]
    found = (_knn(run, state, step), _health(run, log, state, step), _drift(run, state))
    for measured, line in found:
        scalars |= measured
        lines += [line] if line else []
    return scalars, "; ".join(lines)


def _knn(run: PretrainRun, state: TrainState, step: int) -> tuple[Scalars, str]:
    """Returns kNN top-1; at step 0 that of raw pixels too."""
    if run.monitor is None:
        return {}, ""
    monitor = run.monitor
    first = not monitor.classified  # in this start
    rows = monitor.encoded(state.params, state.batch_stats)
    scalars = {"knn_top1": monitor.top1(rows)}
    scalars |= {"knn_images": float(monitor.classified), "knn_k": float(monitor.k)}
    line = f"kNN top-1 {scalars['knn_top1']:.2f}%"
    if step == 0:
        scalars["knn_top1_pixels"] = monitor.top1(monitor.pixels())
        line += f" {_at_first(run.config)}, {scalars['knn_top1_pixels']:.2f}% on raw pixels"
    line = f"{line} ({_base(scalars, run.config.knn.k)})" if first else line
    if run.config.health.probe:
        scalars["linear_top1"] = linear_top1(*rows, layout=run.layout)
        line += f"; linear top-1 {scalars['linear_top1']:.2f}%"
    return scalars, line


def _health(run: PretrainRun, log: MetricsLog, state: TrainState, step: int) -> tuple[Scalars, str]:
    """Returns the measures without labels, and logs the cosines of pairs."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    measured = run.health(variables) if run.health else None
    if measured is None:
        return {}, ""
    for name in ("positives", "negatives"):
        log.histogram(step, f"health/{name}", getattr(measured, name))
    most = min(int(measured.scalars["health/images"]), run.method.encoder.backbone.features)
    return measured.scalars, f"rank {measured.scalars['health/rank']:.1f} of {most}"


def _drift(run: PretrainRun, state: TrainState) -> tuple[Scalars, str]:
    """Returns the mean cosine of stored keys and today's keys, by age."""
    cosines = run.drift.measure(state) if run.drift else {}
    if not cosines:
        return {}, ""
    ages = ", ".join(f"{value:.3f} at {age}" for age, value in cosines.items())
    scalars = {f"key_cosine/age_{age}": value for age, value in cosines.items()}
    return scalars, f"cosine of stored and current keys, by age in steps: {ages}"


def reached(results: Sequence[Scalars], config: ConfigDict) -> str:
    """Returns the newest kNN top-1 beside that of the network at step 0 and of raw pixels."""
    lines = [line for line in results if "knn_top1" in line]
    if not lines:
        return ""
    first, last = lines[0], lines[-1]
    named, others = "", []
    if last["step"] == 0:
        named = f" {_at_first(config)}"
    elif first["step"] == 0:
        others.append(f"{_at_first(config)} {first['knn_top1']:.2f}%")
    if "knn_top1_pixels" in first:
        others.append(f"raw pixels {first['knn_top1_pixels']:.2f}%")
    beside = f" ({', '.join(others)})" if others else ""
    base = _base(last, config.knn.k)
    on = f" on {base}" if base else ""
    return f"kNN top-1 {last['knn_top1']:.2f}%{named}{beside} at step {last['step']}{on}"


def _at_first(config: ConfigDict) -> str:
    return "as loaded" if config.init else "untrained"


def _base(line: Mapping[str, float], asked: int) -> str:
    """Returns on how many images and with how many neighbours kNN was measured."""
    if not {"knn_images", "knn_k"} <= line.keys():  # a log of an earlier version
        return ""
    images = int(line["knn_images"])
    k = f"k = {line['knn_k']:.0f}" + (f" (asked {asked})" if line["knn_k"] < asked else "")
    return f"{images} held-out image{'s' * (images != 1)}, {k}"


def verdict_line(verdicts: Sequence[Verdict]) -> str:
    """Returns a line with the verdicts, "" without any."""
    found = "; ".join(f"{name} ({reason})" for name, reason in verdicts)
    return f"verdict: {found}" if found else ""
