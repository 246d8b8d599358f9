"""The progress of a run on the standard output."""

import contextlib
import sys
import time

import clu.parameter_overview

from moco_jax.parallel import cluster


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
