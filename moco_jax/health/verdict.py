"""A verdict on a run from its log: does the representation get better, and if not, why not."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Line = Mapping[str, float]

# Each threshold comes from runs made to fail; docs/health.md has them.
ABOVE_CHANCE = 1.1  # times the chance level: a loss that no working run has
RISEN = 1.5  # times the lowest loss before
COLLAPSED = 0.1  # spread of the keys, and of the features
LOW_RANK = 0.3  # of the rank at first
SOLVED = 90.0  # percent of pretext accuracy
FALLEN = 3.0  # points of kNN below its best
WAITING = 50.0  # percent of the time
BARELY = 0.98  # times the chance level: a loss that has not begun to fall
GAINED = 2.0  # points of kNN above the network at step 0


class Verdict(NamedTuple):
    """A verdict.

    Attributes:
      name: such as 'healthy' or 'collapsed'.
      reason: the numbers behind it.
    """

    name: str
    reason: str


class _Evidence(NamedTuple):
    """What the verdict is drawn from.

    Attributes:
      now: the newest evaluation.
      before: earlier ones.
      training: lines of training, in order.
    """

    now: Line
    before: Sequence[Line]
    training: Sequence[Line]


def verdict(lines: Sequence[Line]) -> list[Verdict]:
    """Returns the verdict at the newest evaluation, and whether it is starved; [] without one.

    Args:
      lines: of the log: evaluations and training, in order.
    """
    evaluations = [line for line in lines if "health/rank" in line]
    if not evaluations:
        return []
    *before, now = evaluations
    training = [line for line in lines if "loss" in line and line["step"] <= now["step"]]
    if not training:  # as at step 0
        return []
    evidence = _Evidence(now, before, training)
    found = [Verdict(name, reason) for name, find in _RULES.items() if (reason := find(evidence))]
    starved = [Verdict("starved of data", reason)] if (reason := _starved(evidence)) else []
    return [*found[:1], *starved] if found else [*starved, Verdict("healthy", _healthy(evidence))]


def _diverging(e: _Evidence) -> str:
    loss, last = _median(_since(e, 1), "loss"), e.training[-1]
    chance, earlier = last.get("chance_loss", 0.0), _median(_since(e, 2), "loss")
    if chance > 0 and loss > ABOVE_CHANCE * chance:
        return f"loss {loss:.3f}, guessing has {chance:.2f}"
    # Before the first evaluation of a trained network, a queue of random keys makes a low loss.
    if len(e.before) > 1 and loss > RISEN * earlier > 0:
        return f"loss {loss:.3f}, {earlier:.3f} before the last evaluation"
    return ""


def _collapsed(e: _Evidence) -> str:
    spread, keys = e.now["health/spread"], e.now["health/key_spread"]
    if min(spread, keys) >= COLLAPSED:
        return ""
    what, least = ("features", spread) if spread <= keys else ("keys", keys)
    return f"{what} of different images have spread {least:.3f} of 1"


def _partly_collapsed(e: _Evidence) -> str:
    rank, first = e.now["health/rank"], e.before[0]["health/rank"] if e.before else 0.0
    return f"rank {rank:.1f}, at first {first:.1f}" if rank < LOW_RANK * first else ""


def _cheating(e: _Evidence) -> str:
    solved, known = _median(_since(e, 1), "accuracy"), _knn(e.before)
    if solved < SOLVED or "knn_top1" not in e.now or not known:
        return ""
    fallen = max(known) - e.now["knn_top1"]
    if fallen < FALLEN:
        return ""
    return f"pretext accuracy {solved:.1f}%, kNN {fallen:.2f} points below its best"


def _starved(e: _Evidence) -> str:
    waiting = _median(_since(e, 1), "data_wait_percent")
    return f"steps wait {waiting:.0f}% of the time for images" if waiting > WAITING else ""


def _not_learning(e: _Evidence) -> str:
    loss, chance = _median(_since(e, 1), "loss"), e.training[-1].get("chance_loss", 0.0)
    if chance > 0 and loss > BARELY * chance:
        return f"loss {loss:.3f}, guessing has {chance:.2f}"
    first = _knn(e.before[:1])
    if first and "knn_top1" in e.now and e.now["knn_top1"] < first[0] + GAINED:
        return f"kNN {e.now['knn_top1']:.2f}%, {first[0]:.2f}% at first"
    return ""


def _healthy(e: _Evidence) -> str:
    """Returns the numbers that show that nothing is wrong."""
    parts = [f"rank {e.now['health/rank']:.1f}", f"spread {e.now['health/spread']:.2f}"]
    first = _knn(e.before[:1])
    if first and "knn_top1" in e.now:
        parts.insert(0, f"kNN {e.now['knn_top1']:.2f}%, {first[0]:.2f}% at first")
    return ", ".join(parts)


# The first one that finds something is the verdict.
_RULES: dict[str, Callable[[_Evidence], str]] = {
    "diverging": _diverging,
    "collapsed": _collapsed,
    "partly collapsed": _partly_collapsed,
    "cheating": _cheating,
    "not learning yet": _not_learning,
}


def _since(e: _Evidence, evaluation: int) -> list[Line]:
    """Returns the training lines before the newest evaluation or the one before it (2)."""
    ends = [line["step"] for line in (*e.before, e.now)]
    end, begin = ends[-evaluation], ends[-evaluation - 1] if len(ends) > evaluation else -1
    found = [line for line in e.training if begin < line["step"] <= end]
    return found or [line for line in e.training if line["step"] <= end][-1:]


def _median(lines: Sequence[Line], name: str) -> float:
    """Returns the median of a metric, 0 without any."""
    values = [line[name] for line in lines if name in line]
    return statistics.median(values) if values else 0.0


def _knn(lines: Sequence[Line]) -> list[float]:
    return [line["knn_top1"] for line in lines if "knn_top1" in line]
