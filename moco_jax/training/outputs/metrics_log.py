"""The metrics of a run: metrics.jsonl and TensorBoard files."""

import json
import os
import pathlib
import socket
import struct
import time
from collections.abc import Sequence

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from moco_jax.parallel import cluster
from moco_jax.training.outputs import appending
from moco_jax.training.outputs.appending import Appended

_METRICS = "metrics.jsonl"


class MetricsLog:
    """Writes scalars to `metrics.jsonl` and to TensorBoard files in a workdir, on process 0.

    clu's writers import TensorFlow (600 MB, and it takes GPU memory). The thread of tensorboardX's
    writer ends when the disk is full, and then its queue blocks the run; only its formats are used.

    Attributes:
      results: the lines of all evaluations so far, on all processes.
    """

    def __init__(
        self, folder: pathlib.Path, start_step: int, results: Sequence[str] = ("knn_top1",)
    ):
        """Opens no file yet.

        Args:
          folder: the workdir.
          start_step: the step at which the run starts or resumes.
          results: metrics; a line that has one of them is an evaluation.
        """
        # A new run evaluates step 0 again.
        self._last = start_step if start_step else -1
        self._folder = folder
        self._lines = self._board = None  # of process 0 alone
        self._names = set(results)
        self.results: list[dict[str, float]] = []

    @property
    def evaluated(self) -> bool:
        """Whether the log has the evaluation of the step at which it resumes."""
        return any(line["step"] == self._last for line in self.results)

    def open(self) -> None:
        """Opens the files; drops lines after the resumed step, which a killed run wrote."""
        self.results = cluster.on_first(self._open)

    def _open(self) -> list[dict[str, float]]:
        kept = appending.resume(self._folder / _METRICS, self._last)
        self._lines = Appended(self._folder / _METRICS)
        self._board = Appended(self._folder / "tensorboard" / _event_file(), stays_open=True)
        now, step = time.time(), self._last + 1
        # TensorBoard hides the points from this step on, which a killed run wrote.
        start = SessionLog(status=SessionLog.START)
        self._board.write(
            _record(Event(wall_time=now, file_version="brain.Event:2"))
            + _record(Event(wall_time=now, step=step, session_log=start))
        )
        return [line for line in kept if self._names & line.keys()]

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line, and one TensorBoard point for each scalar."""
        line = {"step": step, **scalars}
        if self._names & scalars.keys():
            self.results.append(line)
        if self._lines is None or self._board is None:
            return
        self._lines.write(json.dumps(line).encode() + b"\n")
        values = [value for name, x in scalars.items() for value in scalar(name, x).value]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._board.write(_record(event))

    def close(self) -> None:
        for file in (self._lines, self._board):
            if file is not None:
                file.close()


def _event_file() -> str:
    """Returns the name of a new TensorBoard file."""
    return f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"


def _record(event: Event) -> bytes:
    """Returns an event in the format of TFRecord files."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checks[0] + data + checks[1]
