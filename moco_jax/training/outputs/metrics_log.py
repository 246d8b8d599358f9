"""What a run logs: metrics, images and histograms, on process 0."""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from moco_jax.parallel import cluster
from moco_jax.training.outputs import appending
from moco_jax.training.outputs.sinks import jsonl, loggers
from moco_jax.training.outputs.sinks.tensorboard import TensorBoard

_RECENT = 1000  # lines of training


class MetricsLog:
    """Writes to `metrics.jsonl`, TensorBoard files and the loggers of the config, on process 0.

    A logger that fails never stops the run.

    Attributes:
      results: the lines of all evaluations so far, on all processes.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        start_step: int,
        results: Sequence[str] = ("knn_top1",),
        config: ConfigDict | None = None,
    ):
        """Opens no file yet.

        Args:
          folder: the workdir.
          start_step: the step at which the run starts or resumes.
          results: metrics; a line that has one of them is an evaluation.
          config: of the run; without it there are only files.
        """
        # A new run evaluates step 0 again.
        self._last = start_step if start_step else -1
        self._folder, self._config = folder, config
        self._sinks = loggers.Guarded({})  # of process 0 alone
        self._names = set(results)
        self.results: list[dict[str, float]] = []
        self._recent = collections.deque(maxlen=_RECENT)  # lines of training, on process 0

    @property
    def evaluated(self) -> bool:
        """Whether the log has the evaluation of the step at which it resumes."""
        return any(line["step"] == self._last for line in self.results)

    @property
    def lines(self) -> list[dict[str, float]]:
        """The lines of all evaluations and the latest ones of training, in order, on process 0."""
        return sorted([*self._recent, *self.results], key=lambda line: line["step"])

    def open(self) -> None:
        """Opens the files; drops lines after the resumed step, which a killed run wrote."""
        self.results = cluster.on_first(self._open)

    def _open(self) -> list[dict[str, float]]:
        kept = appending.resume(self._folder / jsonl.FILE, self._last)
        files = {
            "metrics.jsonl": jsonl.Jsonl(self._folder),
            "TensorBoard": TensorBoard(self._folder, self._last + 1),
        }
        start = max(self._last, 0)
        remotes = loggers.remotes(self._config, self._folder, start) if self._config else {}
        self._sinks = loggers.Guarded(files | remotes)
        appending.resume(self._folder / jsonl.HISTOGRAMS, self._last, lists=True)
        results = [line for line in kept if self._names & line.keys()]
        self._recent.extend(line for line in kept if not self._names & line.keys())
        return results

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line, and one point for each scalar."""
        lines = self.results if self._names & scalars.keys() else self._recent
        lines.append({"step": step, **scalars})
        self._sinks.scalars(step, scalars)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Writes images uint8[N, H, W, 3]."""
        self._sinks.images(step, name, images)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Writes the distribution of the finite values of an array."""
        values = np.asarray(values, np.float64).ravel()
        values = values[np.isfinite(values)]
        if len(values):
            self._sinks.histogram(step, name, values)

    def close(self) -> None:
        self._sinks.close()
