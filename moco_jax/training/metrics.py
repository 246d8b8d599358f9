"""The outputs of a run: metrics.jsonl, TensorBoard files and the progress line."""

import contextlib
import json
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Sequence

import clu.parameter_overview
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from moco_jax.parallel import cluster
from moco_jax.training import appending
from moco_jax.training.appending import Appended

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


class Console:
    """Prints the progress of a run on process 0; on a terminal the progress line stays in place."""

    def __init__(self, total_steps: int, steps_per_epoch: int):
        """Prints nothing yet.

        Args:
          total_steps: length of the run.
          steps_per_epoch: to count epochs.
        """
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._live = sys.stdout.isatty()
        self._open = False
        self._speaks = cluster.is_first()

    def progress(self, step: int, m: dict[str, float], own: str) -> None:
        """Prints the progress line: `own` is the task's part of it."""
        if not self._speaks:
            return
        line = (
            f"step {step}/{self._total}  epoch {step / self._per_epoch:.2f}  {own}  "
            f"lr {m['lr']:.4g}  {m['images_per_second']:.0f} images/s  "
            f"waiting {m['data_wait_percent']:.0f}%  "
            f"ETA {duration(m['seconds_per_step'] * (self._total - step))}"
        )
        with contextlib.suppress(OSError):  # the output may be a file on a full disk
            if self._live:
                self._open = True
                print(f"\r\x1b[K{line}", end="", flush=True)
            else:
                print(line, flush=True)

    def say(self, message: str) -> None:
        """Prints a message on its own line."""
        if not self._speaks:
            return
        with contextlib.suppress(OSError):
            if self._open:
                self._open = False
                print()
            print(message, flush=True)


class Stopwatch:
    """Measures throughput and the fraction of time spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts a new interval, for example after an evaluation."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float) -> None:
        """Adds a step that waited this many seconds for its batch."""
        self._waited += seconds
        self._steps += 1

    def lap(self, batch_size: int) -> dict[str, float]:
        """Returns the speed of the interval and starts the next one."""
        seconds = time.perf_counter() - self._start
        steps = max(self._steps, 1)
        result = {
            "images_per_second": batch_size * steps / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_percent": 100.0 * self._waited / seconds,
        }
        self.restart()
        return result


def duration(seconds: float) -> str:
    """Returns 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def parameter_table(params) -> str:
    """Returns a table of the parameters' names, shapes and sizes."""
    return clu.parameter_overview.get_parameter_overview(params, include_stats=False)
