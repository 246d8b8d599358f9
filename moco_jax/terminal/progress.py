"""Shows that a command works: phases of unknown length, and bars of items.

On a terminal a line stays in place, with the elapsed time, and vanishes at the end; a thread draws
it, since the main thread may compile. Elsewhere a line is printed when a phase lasts longer than
two seconds, and then each minute. Both are on the standard error of process 0. `TQDM_DISABLE=1`
turns them off.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TextIO, TypeVar

import jax
import tqdm

from moco_jax.parallel import cluster
from moco_jax.terminal import style
from moco_jax.text import line as one_line

FIRST = 2.0  # seconds that nothing is shown
EVERY = 60.0  # seconds between two lines where there is no terminal
_EVERY_IN_NOTEBOOK = 10.0
_REDRAW = 0.5  # seconds between two drawings of the live line
_SHORTEST_BAR = 20  # columns, with the percentage

T = TypeVar("T")


def now() -> float:
    """Returns a clock in seconds."""
    return time.monotonic()


class Shown(Protocol):
    """What the ticker shows of some work."""

    stream: TextIO
    stays: bool  # whether its live line stays above what follows

    def live(self, columns: int) -> str:
        """Returns the line for a terminal, '' for none yet; the caller cuts it to `columns`."""
        ...

    def line(self) -> str:
        """Returns the line that is due where there is no terminal, or ''."""
        ...


class _Ticker:
    """A thread that shows the innermost work, as long as there is any."""

    def __init__(self):
        self._works: list[Shown] = []
        self.seen = now()  # when something was shown
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, work: Shown) -> None:
        with style.LOCK:
            self._works.append(work)
            if self._thread is None:
                self._idle = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._idle,), daemon=True, name="progress"
                )
                self._thread.start()

    def end(self, work: Shown) -> None:
        thread = None
        with style.LOCK:
            if work in self._works:
                self._works.remove(work)
            style.clear(work)
            if not self._works and self._thread:
                self._idle.set()
                thread, self._thread = self._thread, None
        # The lock is free: the thread may need it to end.
        if thread and thread is not threading.current_thread():
            thread.join(1.0)

    def _run(self, idle: threading.Event) -> None:
        while not idle.wait(_REDRAW):
            with style.LOCK:
                if self._works and not idle.is_set():
                    show(self._works[-1])


_ticker = _Ticker()


def show(work: Shown) -> None:
    """Draws the live line of some work, or prints the line that is due."""
    if style.is_live(work.stream):
        columns = style.width(work.stream) - 1  # a full line would wrap
        if line := work.live(columns):
            _ticker.seen = now()
            style.draw(style.fitted(line, columns), work.stream, work, stays=work.stays)
    elif line := work.line():
        style.print_line(line, work.stream)


@contextlib.contextmanager
def shown(work: Shown) -> Iterator[None]:
    """Shows some work during the block, on process 0."""
    if _disabled() or not _speaks():
        yield
        return
    _ticker.begin(work)
    try:
        yield
    finally:
        _ticker.end(work)


def _speaks() -> bool:
    # `jax.process_index` opens the devices, which must come after the processes have joined.
    return not jax.distributed.is_initialized() or cluster.is_first()


def _disabled() -> bool:
    return os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


class _Timer:
    """When lines of some work are due."""

    def __init__(self):
        self._begun = now()
        self._next, self._visible = FIRST, False

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return now() - self._begun

    def is_visible(self) -> bool:
        """Returns whether a live line is due: short phases in a row must not be silent either."""
        first = _REDRAW if now() - _ticker.seen >= FIRST else FIRST
        self._visible = self._visible or self.elapsed >= first
        return self._visible

    def is_due(self) -> bool:
        """Returns whether a line is due; the next one is due a minute later."""
        if self.elapsed < self._next:
            return False
        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        self._next = self.elapsed + (_EVERY_IN_NOTEBOOK if in_notebook else EVERY)
        return True


class _Phase:
    """Work of unknown length."""

    stays = False

    def __init__(self, text: str, expects: str, detail: Callable[[], str] | None, announced: bool):
        text = one_line(text)  # it may name files
        self._title = f"{text} ({expects})" if expects else text
        self._text, self._detail, self._lines = text, detail, int(announced)
        self.stream, self._timer = sys.stderr, _Timer()

    def live(self, columns: int) -> str:
        elapsed = self._timer.elapsed
        if not self._timer.is_visible():
            return ""
        end = f" ... {self._more()}{duration(elapsed)}"
        return style.fitted(self._title, columns - len(end)) + end

    def line(self) -> str:
        if not self._timer.is_due():
            return ""
        self._lines += 1
        if self._lines == 1:
            return f"{self._title} ... {self._more()}".rstrip().removesuffix(",")
        return f"{self._text}: {self._more()}{duration(self._timer.elapsed)} so far"

    def _more(self) -> str:
        detail = self._detail() if self._detail else ""
        return f"{detail}, " if detail else ""


@contextlib.contextmanager
def phase(
    text: str,
    expects: str = "",
    *,
    detail: Callable[[], str] | None = None,
    announced: bool = False,
) -> Iterator[None]:
    """Shows during the block what it does and for how long it has done so.

    Args:
      text: what the block does, such as 'compiling the step'.
      expects: how long that takes, such as '20 to 60 s'.
      detail: returns how far it is, such as '120,000 images'; another thread calls it.
      announced: whether a line about it has been printed already.
    """
    with shown(_Phase(text, expects, detail, announced)):
        yield


class Bar:
    """Work on a known number of items; call `update` after some of them."""

    stays = False

    def __init__(self, total: int, text: str, unit: str, first: str):
        self._total, self._unit, self._first = total, unit, first
        self._text = one_line(text)  # it may name files
        self.stream, self._timer = sys.stderr, _Timer()
        self._done = 0.0
        # The first items may wait for a compilation, so the rate is that of the others.
        self._counted_from: tuple[float, float] | None = None

    def update(self, items: float = 1) -> None:
        """Adds items that are done."""
        self._done += items
        if self._counted_from is None:
            self._counted_from = self._done, self._timer.elapsed

    def live(self, columns: int) -> str:
        elapsed = self._timer.elapsed
        if not self._timer.is_visible():
            return ""
        done = int(self._done)
        if not done and self._first:
            return f"{self._text}: {self._first} ... {duration(elapsed)}"
        counts = self._counts()
        if columns < len(self._text) + len(counts) + _SHORTEST_BAR:
            return f"{self._text}: {counts}"
        return tqdm.tqdm.format_meter(
            done,
            self._total,
            elapsed,
            ncols=columns,
            prefix=self._text,
            ascii=not _can_encode(self.stream, "█▏"),
            bar_format="{l_bar}{bar}| " + counts,
        )

    def line(self) -> str:
        if not self._timer.is_due():
            return ""
        first = f"{self._first} ..." if self._first and not self._done else ""
        return f"{self._text}: {first or self._counts()}"

    def _counts(self) -> str:
        """Returns items, rate and the time that is left."""
        text, rate = f"{int(self._done):,} of {self._total:,} {self._unit}", self._rate()
        if not rate:
            return text
        left = duration(max(0.0, self._total - self._done) / rate)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{text}, {speed}/s, {left} left"

    def _rate(self) -> float | None:
        """Returns items per second since the first update; None before the second one."""
        if self._counted_from is None:
            return None
        items, seconds = self._done - self._counted_from[0], self._timer.elapsed
        seconds -= self._counted_from[1]
        return items / seconds if items > 0 and seconds > 0 else None


@contextlib.contextmanager
def bar(total: int, text: str, unit: str, *, first: str = "") -> Iterator[Bar]:
    """Shows during the block how many items are done, the rate and the time that is left.

    Args:
      total: number of items.
      text: what the block does, such as 'encoding'.
      unit: of the items, such as 'images'.
      first: what happens before the first item is done, such as 'compiling'.
    """
    made = Bar(total, text, unit, first)
    with shown(made):
        yield made


def items(
    iterable: Iterable[T], total: int, text: str, *, unit: str, first: str = ""
) -> Iterator[T]:
    """Yields the items and shows a `bar`; an item counts as done when the next one is asked for."""
    with bar(total, text, unit, first=first) as made:
        for item in iterable:
            yield item
            made.update()


def duration(seconds: float) -> str:
    """Returns 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _can_encode(stream: TextIO, characters: str) -> bool:
    try:
        characters.encode(getattr(stream, "encoding", None) or "ascii")
        return True
    except (UnicodeEncodeError, LookupError):
        return False
