"""The progress line of a run: live and fitted on a terminal, whole and seldom elsewhere."""

import io
import logging

import pytest

from moco_jax.terminal import progress, style
from moco_jax.training.outputs import console as console_lib
from moco_jax.training.outputs.console import Console, Stopwatch

METRICS = {
    "lr": 0.01603,
    "images_per_second": 123456.0,
    "data_wait_percent": 1.0,
    "seconds_per_step": 3600.0,
}
OWN = "loss 3.920 (chance 6.24)  pretext 26.6%"


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def made(monkeypatch):
    """Returns a function: (terminal, columns) -> a console of 1,234,567 steps and its stream."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress._Ticker, "_run", lambda self, idle: idle.wait())

    def make(terminal: bool, columns: int = 80) -> tuple[Console, Stream]:
        stream = Stream(terminal)
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr(style, "width", lambda stream=None: columns)
        return Console(1_234_567, 5000), stream

    return make


@pytest.fixture
def clock(monkeypatch):
    """Returns a list with the seconds that the clock shows."""
    seconds = [0.0]
    monkeypatch.setattr(progress, "now", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_live_line_never_wraps_and_begins_with_the_eta(made, clock, columns):
    console, stream = made(True, columns)
    for step in (99, 1_000_000, 7):
        console.progress(step, METRICS, OWN)
    lines = [line for line in stream.getvalue().split("\r") if line.strip()]
    assert all(len(line) < columns for line in lines)
    assert lines[0].startswith("step 99/1234567  ETA 1234468:00:00")
    assert ("123456 images/s" in lines[0]) is (columns > 40)
    assert ("loss 3.920 (chance 6.24)" in lines[0]) is (columns >= 80)
    assert ("waiting 1%" in lines[0]) is (columns == 160)
    assert "\x1b" not in stream.getvalue() and "\n" not in stream.getvalue()


def test_without_a_terminal_each_log_is_a_whole_line(made, clock):
    console, stream = made(False, 40)
    console.progress(1650, METRICS | {"images_per_second": 916.0, "seconds_per_step": 1.0}, OWN)
    assert stream.getvalue() == (
        "step 1650/1234567  epoch 0.33  loss 3.920 (chance 6.24)  pretext 26.6%  lr 0.01603  "
        "916 images/s  waiting 1%  ETA 342:28:37\n"
    )


def test_the_line_moves_on_before_the_first_numbers(made, clock):
    console, stream = made(True)
    with console.counting():
        clock[0] = 1.0
        progress.show(console)
        assert stream.getvalue() == ""
        clock[0] = 65.0
        progress.show(console)
        assert stream.getvalue() == "\rfirst of 1234567 steps  1:05 elapsed"
        console.passed(1)
        progress.show(console)
        assert stream.getvalue().split("\r")[-1].rstrip() == "step 1/1234567  1:05 elapsed"


def test_a_slow_step_shows_its_time(made, clock):
    console, stream = made(True)
    with console.counting():
        console.progress(20, METRICS, OWN)
        clock[0] = 45.0
        progress.show(console)
        assert "  0:45 in this step  " in stream.getvalue().split("\r")[-1]
        console.passed(21)
        progress.show(console)
        assert "step 21/" in (last := stream.getvalue().split("\r")[-1]) and "in this" not in last


def test_without_a_terminal_there_is_a_line_a_minute(made, clock):
    console, stream = made(False)
    with console.counting():
        console.passed(3)
        for clock[0] in range(0, 150):
            progress.show(console)
    assert stream.getvalue().splitlines() == [
        "step 3/1234567  1:00 elapsed",
        "step 3/1234567  2:00 elapsed",
    ]


def test_a_message_ends_the_live_line_and_is_wrapped(made, clock):
    console, stream = made(True, 40)
    console.progress(20, METRICS, OWN)
    console.say("step 20  " + "a result of many words; " * 4)
    lines = stream.getvalue().lstrip("\r").splitlines()
    assert lines[0].startswith("step 20/1234567  ETA")
    assert len(lines) > 3 and max(map(len, lines)) <= 40


def test_counting_ends_with_a_whole_line(made, clock):
    console, stream = made(True)
    with pytest.raises(KeyboardInterrupt), console.counting():
        console.progress(20, METRICS, OWN)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n") and stream.getvalue().count("\n") == 1


def test_spike_of_the_gradient_is_one_warning(made, caplog):
    console, _ = made(terminal=False)
    with caplog.at_level(logging.WARNING, logger="absl"):
        for step in range(1, 11):
            console.progress(step, METRICS | {"grad_norm": 50.0 if step >= 9 else 2.0}, OWN)
    assert caplog.messages == [
        "step 9: a spike of the gradient: grad_norm is 50, its recent median 2"
    ]


def test_speed_counts_no_pause(monkeypatch):
    now = 100.0
    monkeypatch.setattr(console_lib.time, "perf_counter", lambda: now)
    watch = Stopwatch()
    watch.waited(0.5)
    now += 2.0
    with watch.paused():
        now += 30.0
    assert watch.lap(64) == {
        "images_per_second": 32.0,
        "seconds_per_step": 2.0,
        "data_wait_percent": 25.0,
    }
