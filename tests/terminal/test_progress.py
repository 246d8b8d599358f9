"""Phases and bars: silent when short, one line in place on a terminal, few lines elsewhere."""

import contextlib
import io
import threading

import pytest

from moco_jax.terminal import progress, style


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self):
        self.seconds = 0.0

    def go(self, seconds: float, work=None) -> None:
        """Advances half a second at a time, as the ticker does, and shows the work."""
        end = self.seconds + seconds
        while self.seconds < end:
            self.seconds += 0.5
            if work:
                progress.show(work)


class Stream(io.StringIO):
    """A standard error; `columns` is the width of its terminal, 0 for a pipe."""

    encoding = "utf-8"  # pyright: ignore[reportAssignmentType]

    def __init__(self, columns: int = 0):
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return self.columns > 0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    monkeypatch.setattr(progress, "now", lambda: clock.seconds)
    monkeypatch.setattr(style, "width", lambda stream=None: getattr(stream, "columns", 0) or 80)
    monkeypatch.setattr(progress, "_ticker", progress._Ticker())
    # The tests show the work themselves.
    monkeypatch.setattr(progress._Ticker, "_run", lambda self, idle: idle.wait())
    return clock


@pytest.fixture
def output(monkeypatch):
    """Returns a function: columns -> a new standard error."""

    def make(columns: int) -> Stream:
        stream = Stream(columns)
        monkeypatch.setattr(progress.sys, "stderr", stream)
        return stream

    return make


def screen(stream: Stream) -> str:
    """Returns what a terminal shows in the end."""
    lines = []
    for line in stream.getvalue().split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def ends(thread: threading.Thread) -> bool:
    thread.join(60)
    return not thread.is_alive()


def current():
    return progress._ticker._works[-1]


@pytest.mark.parametrize("columns", [0, 80])
def test_a_short_phase_is_silent(clock, output, columns):
    stream = output(columns)
    with progress.phase("compiling", "20 to 60 s"):
        clock.go(1.5, current())
    assert stream.getvalue() == ""


def test_short_phases_in_a_row_are_not_silent(clock, output):
    stream = output(80)
    for number in range(2):
        with progress.phase(f"part {number}"):
            clock.go(1.5, current())
            line = screen(stream)
        assert line == ("part 1 ... 0:02" if number else "")


def test_a_long_phase_shows_its_time_and_vanishes(clock, output):
    stream = output(80)
    with progress.phase("compiling the step", "20 to 60 s"):
        clock.go(65, current())
        assert screen(stream) == "compiling the step (20 to 60 s) ... 1:05"
    assert screen(stream) == ""
    assert "\n" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_without_a_terminal_a_phase_is_a_line_a_minute(clock, output):
    stream = output(0)
    with progress.phase("compiling the step", "20 to 60 s"):
        clock.go(150, current())
    assert stream.getvalue().splitlines() == [
        "compiling the step (20 to 60 s) ...",
        "compiling the step: 1:02 so far",
        "compiling the step: 2:02 so far",
    ]


def test_a_phase_says_how_far_it_is(clock, output):
    found, stream = [], output(0)
    with progress.phase("listing photos", detail=lambda: f"{len(found):,} images"):
        found += range(120_000)
        clock.go(5, current())
    assert stream.getvalue() == "listing photos ... 120,000 images\n"


def test_an_announced_phase_has_no_first_line(clock, output):
    stream = output(0)
    with progress.phase("compiling", announced=True):
        clock.go(70, current())
    assert stream.getvalue() == "compiling: 0:02 so far\ncompiling: 1:02 so far\n"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 160])
@pytest.mark.parametrize("text", ["encoding", "encoding a folder with a name of many letters"])
def test_a_live_line_is_shorter_than_the_terminal(clock, output, columns, text):
    stream = output(columns)
    with progress.bar(1_300_000, text, "images", first="compiling the encoder") as bar:
        clock.go(10, current())
        for _ in range(20):
            bar.update(256)
            clock.go(1, current())
    with progress.phase(text, "usually 20 to 60 s"):
        clock.go(4000, current())
    shown = stream.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, shown)) == columns - 1 if columns <= 60 else max(map(len, shown)) < columns


def test_a_bar_shows_rate_and_time_that_is_left(clock, output):
    stream = output(80)
    with progress.bar(1000, "encoding", "images", first="compiling") as bar:
        clock.go(30, current())
        assert screen(stream) == "encoding: compiling ... 0:30"
        bar.update(100)
        for _ in range(4):
            clock.go(1, current())
            bar.update(100)
        clock.go(1, current())
        line = screen(stream)
    # The rate does not count the compilation.
    assert line.startswith("encoding:  50%|█") and len(line) == 79
    assert line.endswith("500 of 1,000 images, 80/s, 0:06 left")
    assert screen(stream) == ""


def test_a_bar_needs_no_unicode(clock, output):
    stream = output(80)
    stream.encoding = "ascii"
    with progress.bar(100, "encoding", "images") as bar:
        bar.update(50)
        clock.go(5, current())
        assert screen(stream).isascii()
        assert "####" in screen(stream)


def test_without_a_terminal_a_bar_is_a_line_a_minute(clock, output):
    stream = output(0)
    taken = []
    for item in progress.items(range(1000), 1000, "encoding", unit="images", first="compiling"):
        taken.append(item)
        clock.go(3 if item == 0 else 0.5, current())
    assert taken == list(range(1000))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["encoding: compiling ...", "encoding: 118 of 1,000 images, 2/s, 7:25 left"]
    assert len(lines) == 9


def test_nested_phases_show_the_innermost(clock, output):
    stream = output(80)
    with progress.phase("evaluating"):
        clock.go(3, current())
        with progress.phase("encoding"):
            clock.go(3, current())
            assert screen(stream) == "encoding ... 0:03"
        clock.go(3, current())
        assert screen(stream) == "evaluating ... 0:09"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_a_clean_line_and_no_thread(clock, output, error):
    stream, others = output(80), threading.enumerate()
    with pytest.raises(error), progress.phase("compiling"):
        clock.go(5, current())
        raise error
    print("error: it failed", file=stream)
    assert screen(stream).splitlines() == ["error: it failed"]
    assert all(ends(thread) for thread in set(threading.enumerate()) - set(others))


def test_a_message_takes_the_place_of_the_live_line(clock, output):
    stream = output(80)
    with progress.phase("loading"):
        clock.go(3, current())
        style.print_line("skipped a.jpg", stream)
        clock.go(1, current())
        assert screen(stream) == "skipped a.jpg\nloading ... 0:04"


@pytest.mark.parametrize(("variable", "value"), [("TQDM_DISABLE", "1"), ("TERM", "dumb")])
def test_it_can_be_turned_off(clock, output, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    stream = output(80)
    with progress.phase("compiling"):
        if variable == "TERM":
            clock.go(3, current())
    assert "\r" not in stream.getvalue()


def test_other_processes_print_nothing(clock, output, monkeypatch):
    stream = output(80)
    monkeypatch.setattr(progress, "_speaks", lambda: False)
    with progress.phase("compiling"):
        assert not progress._ticker._works
    assert stream.getvalue() == ""


def test_it_works_outside_the_main_thread(clock, output):
    stream = output(0)

    def work():
        with progress.phase("encoding"):
            clock.go(3, current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stream.getvalue() == "encoding ...\n"


def test_a_full_disk_or_a_closed_stream_stops_nothing(clock, output):
    stream = output(0)
    stream.close()
    with progress.phase("compiling"):
        clock.go(5, current())


def test_the_ticker_shows_work_and_ends(monkeypatch, output):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "_REDRAW", 0.001)
    stream, drawn, others = output(0), threading.Event(), threading.enumerate()
    monkeypatch.setattr(style, "print_line", lambda line, stream: drawn.set())
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.phase("compiling"))
        assert drawn.wait(60)
        new = set(threading.enumerate()) - set(others)
        [ticker] = [thread for thread in new if thread.name == "progress"]
    assert ends(ticker)
    assert stream.getvalue() == ""


def test_names_of_files_are_printable(clock, output):
    stream = output(0)
    with progress.phase("listing a\x1b[2J\n"), progress.bar(1, "loading \x1b[2J", "images"):
        clock.go(3, progress._ticker._works[0])
        clock.go(3, progress._ticker._works[1])
    assert stream.getvalue().splitlines() == [
        r"listing a\x1b[2J\x0a ...",
        r"loading \x1b[2J: 0 of 1 images",
    ]
