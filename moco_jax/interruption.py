"""Ctrl-C and SIGTERM as a request to save and stop."""

import contextlib
import signal
from collections.abc import Iterator


class Interruption:
    """Whether the run was asked to stop, and by which signal."""

    by: signal.Signals | None = None


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Collects the first signal inside the block; the second acts as it would without.

    Outside the main thread signals can't be caught, and the block runs without.
    """
    interruption = Interruption()
    previous = {}

    def note(number, frame):
        interruption.by = signal.Signals(number)
        restore()

    def restore():
        while previous:
            signal.signal(*previous.popitem())

    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()
