"""Names spikes of the gradient: they precede dips of the accuracy that the loss hides (MoCo v3)."""

import statistics
from collections.abc import Mapping, Sequence

RECENT = 50  # logged steps of which the median is taken
_FEWEST = 5  # earlier ones have no median yet
_FACTOR = 10.0  # times the median


def spike(step: int, now: Mapping[str, float], recent: Sequence[Mapping[str, float]]) -> str:
    """Returns a line that names the gradient norms far above their recent median, "" without one.

    A norm that stays high is named once.

    Args:
      step: of the metrics.
      now: metrics; those whose names begin with `grad_norm` are looked at.
      recent: the metrics of the logged steps before, at most `RECENT`, the latest one last.
    """
    found = []
    for name in (name for name in now if name.startswith("grad_norm")):
        values = [metrics[name] for metrics in recent]
        if len(values) < _FEWEST:
            continue
        median = statistics.median(values)
        if values[-1] <= _FACTOR * median < now[name]:
            found.append(f"{name} is {now[name]:.3g}, its recent median {median:.3g}")
    return f"step {step}: a spike of the gradient: {'; '.join(found)}" if found else ""
