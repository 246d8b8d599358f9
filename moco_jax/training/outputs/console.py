"""The progress of a run on the standard output."""

import collections
import contextlib
import sys
import time
from collections.abc import Iterator

import clu.parameter_overview

from moco_jax.parallel import cluster
from moco_jax.terminal import logs, progress, style
from moco_jax.terminal.progress import duration
from moco_jax.training.outputs import spikes

_SLOW = 5.0  # seconds of a step that are shown while it runs


class Console:
    """Prints the progress of a run on process 0.

    On a terminal the progress line stays in place and moves on between two logs too. Elsewhere each
    log is a line; without a log there is a line a minute. It counts steps and never waits for the
    devices.

    Attributes:
      stream, stays: see `progress.Shown`.
    """

    stays = True

    def __init__(self, total_steps: int, steps_per_epoch: int):
        """Prints nothing yet.

        Args:
          total_steps: length of the run.
          steps_per_epoch: to count epochs.
        """
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self.stream = sys.stdout
        self._speaks = cluster.is_first()
        self._begun = self._printed = self._moved = progress.now()
        self._done: int | None = None
        self._numbers: list[str] = []  # of the last log, the most important first
        self._seconds_per_step = 0.0
        self._recent = collections.deque(maxlen=spikes.RECENT)  # metrics of the last logs

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Keeps the progress line alive during the block."""
        self._begun = self._printed = self._moved = progress.now()
        with progress.shown(self):
            yield

    def passed(self, step: int) -> None:
        """Notes that a step is done; prints nothing."""
        if step != self._done:
            self._done, self._moved = step, progress.now()

    def progress(self, step: int, m: dict[str, float], own: str) -> None:
        """Prints the progress line: `own` is the task's part of it."""
        self.passed(step)
        self._seconds_per_step = m["seconds_per_step"]
        if self._speaks and (spike := spikes.spike(step, m, self._recent)):
            logs.warning("%s", spike)
        self._recent.append(m)
        epoch, rate = f"epoch {step / self._per_epoch:.2f}", f"lr {m['lr']:.4g}"
        speed = f"{m['images_per_second']:.0f} images/s"
        waiting = f"waiting {m['data_wait_percent']:.0f}%"
        self._numbers = [speed, *own.split("  "), epoch, rate, waiting]
        if not self._speaks:
            return
        if style.is_live(self.stream):
            progress.show(self)
        else:
            where = f"step {step}/{self._total}"
            self._print("  ".join((where, epoch, own, rate, speed, waiting, self._eta(step))))

    def live(self, columns: int) -> str:
        """Returns the progress line for a terminal: what is most important, as room allows."""
        now = progress.now()
        if not self._numbers and now - self._begun < progress.FIRST:
            return ""
        done, since = self._done or 0, now - self._moved
        parts = [f"step {done}/{self._total}"] if self._done else [f"first of {self._total} steps"]
        parts += [self._eta(done)] if self._numbers else [f"{duration(now - self._begun)} elapsed"]
        parts += [f"{duration(since)} in this step"] if since >= _SLOW and self._numbers else []
        line = parts[0]
        for part in [*parts[1:], *self._numbers]:
            if len(line) + 2 + len(part) <= columns:
                line += f"  {part}"
        return line

    def line(self) -> str:
        """Returns a line where there is no terminal, if nothing was printed for a minute."""
        now, done = progress.now(), self._done or 0
        if now - self._printed < progress.EVERY:
            return ""
        self._printed = now
        eta = f"  {self._eta(done)}" if self._numbers else ""
        return f"step {done}/{self._total}  {duration(now - self._begun)} elapsed{eta}"

    def say(self, message: str) -> None:
        """Prints a message on its own lines; long ones are wrapped on a terminal."""
        if self._speaks:
            self._print(message)

    def _print(self, message: str) -> None:
        style.print_line(message, self.stream)
        self._printed = progress.now()

    def _eta(self, step: int) -> str:
        return f"ETA {duration(self._seconds_per_step * (self._total - step))}"


class Stopwatch:
    """Measures throughput and the fraction of time spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts a new interval, for example after an evaluation."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of the block."""
        begun = time.perf_counter()
        yield
        self._start += time.perf_counter() - begun

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


def parameter_table(params) -> str:
    """Returns a table of the parameters' names, shapes and sizes."""
    return clu.parameter_overview.get_parameter_overview(params, include_stats=False)
