"""Ctrl-C and SIGTERM as a request to save and stop."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """Raised at the current line when a signal comes, like `KeyboardInterrupt`.

    Attributes:
      signal: that came.
    """

    def __init__(self, by: signal.Signals):
        super().__init__(by.name)
        self.signal = by


def named(by: signal.Signals) -> str:
    """Returns a signal as its sender knows it: 'Ctrl-C' or 'SIGTERM'."""
    return "Ctrl-C" if by == signal.SIGINT else by.name


class Interruption:
    """Whether a signal asked the run to stop.

    Attributes:
      by: the signal, None until one comes.
    """

    def __init__(self, *, always_waits: bool = False):
        """Starts without a request.

        Args:
          always_waits: only note a signal, whatever the run is doing.
        """
        self.by: signal.Signals | None = None
        self._always = self._waits = always_waits

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block a signal is only noted; the block checks `by` when it can stop."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = self._always

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, inside a `waiting` block, a signal raises `Stopped` again."""
        self._waits = self._always
        try:
            if self.by and not self._waits:
                raise Stopped(self.by)
            yield
        finally:
            self._waits = True

    def note(self, by: signal.Signals) -> None:
        """Notes the signal; raises `Stopped` outside a `waiting` block."""
        self.by = by
        if not self._waits:
            raise Stopped(by)


@contextlib.contextmanager
def watch(*, always_waits: bool = False) -> Iterator[Interruption]:
    """Catches signals inside the block.

    After the first one, every SIGTERM is ignored: launchers repeat it while the state is saved. A
    SIGINT after the first signal has its usual effect.

    Outside the main thread signals can't be caught, and the block runs without.

    Args:
      always_waits: see `Interruption`.
    """
    interruption = Interruption(always_waits=always_waits)
    previous = {}

    def handle(number, frame):
        if signal.SIGINT in previous:
            signal.signal(signal.SIGINT, previous.pop(signal.SIGINT))
        if interruption.by is None:
            interruption.note(signal.Signals(number))

    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield interruption
    finally:
        while previous:
            signal.signal(*previous.popitem())
