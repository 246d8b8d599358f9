"""Commands end with one line, not with a traceback: signals, closed pipes, full disks, locales."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import run_command

SCRIPT = """
import concurrent.futures, gc, pathlib, sys, time
from moco_jax.terminal import command_line, signals

def blocked():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 1000)
        print("ready", flush=True)
        time.sleep(1000)

def writes():
    path = pathlib.Path("half")
    with signals.unfinished(path):
        path.write_text("half of a file")
        blocked()

def saves():
    try:
        print("ready", flush=True)
        time.sleep(1000)
    except KeyboardInterrupt:
        time.sleep(signals._GRACE + 2)
        print("saved", flush=True)
    raise KeyboardInterrupt

def swallows():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(1000)
        except BaseException:
            pass

def collects():
    # The signal comes within a callback of the garbage collector, where exceptions are ignored.
    def callback(*_):
        sys.stdout.write("ready\\n")  # at once: a signal may come between two writes
        sys.stdout.flush()
        time.sleep(1000)

    gc.callbacks.append(callback)
    try:
        gc.collect()
        gc.callbacks.clear()
        time.sleep(1000)
    finally:
        print("ended", flush=True)

name = sys.argv.pop(1)
command_line.run_main(globals()[name], config="none", saves=name in ("saves", "collects"))
"""
MODULES = (
    *("embed", "knn", "plan", "convert", "ablate", "report", "data.preview", "data.benchmark"),
    *("data.prepare", "main"),
)


@pytest.fixture
def start(repository, tmp_path):
    """Starts Python with arguments; returns the process."""
    running = []

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(repository)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "module",
    [name if name == "embed" else pytest.param(name, marks=pytest.mark.slow) for name in MODULES],
)
def test_ctrl_c_while_jax_is_imported(start, module):
    process = start("-m", f"moco_jax.{module}")
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    while "numpy" not in maps.read_text():  # a part of the imports
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    assert (process.returncode, out, errors) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize("name", ["blocked", "writes", "swallows"])
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_command_that_can_not_end_itself(start, tmp_path, name, number, code, line):
    process = start("-c", SCRIPT, name)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (code, f"\n{line}\n")
    assert not list(tmp_path.iterdir())


def test_a_second_signal_ends_a_command_at_once(start):
    process = start("-c", SCRIPT.replace("_GRACE", "_NONE"), "swallows")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"  # it goes on
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (130, "\ninterrupted\n")


def test_a_command_that_saves_has_all_the_time_it_needs(start):
    process = start("-c", SCRIPT, "saves")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    assert (process.returncode, out, errors) == (130, "saved\n", "\ninterrupted\n")


PRINTS = """
from moco_jax.terminal import command_line
def work():
    rows = (("\\u00e9", "\\udce9", number) for number in range({rows}))
    command_line.print_rows(rows, "abc", "csv")
command_line.run_main(work, config="none")
"""


def test_a_signal_that_a_callback_swallows_comes_again(start):
    process = start("-c", SCRIPT, "collects")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    # The callback runs again after the collection, and swallows the second signal too.
    assert (process.returncode, out, errors) == (130, "ready\nended\n", "\ninterrupted\n")


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_closed_pipe_ends_a_command_quietly(start, rows):
    process = start("-c", PRINTS.format(rows=rows))
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_full_disk_is_one_message(start, repository, rows):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS.format(rows=rows)],
            env=os.environ | {"PYTHONPATH": str(repository)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "row"),
    [
        ({"PYTHONIOENCODING": "ascii:strict"}, rb"\xc3\xa9,\xe9,0"),
        ({"PYTHONIOENCODING": "utf-8:strict"}, "é".encode() + rb",\xe9,0"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, rb"\xc3\xa9,\xe9,0"),
    ],
)
def test_rows_are_printed_under_every_locale(repository, environment, row):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.format(rows=1)],
        env=os.environ | {"PYTHONPATH": str(repository)} | environment,
        capture_output=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (0, b"a,b,c\n" + row + b"\n")


@pytest.mark.parametrize("flag", ["-h", "--helpshort"])
def test_help_has_the_usual_other_names(repository, flag):
    done = run_command(repository, "moco_jax.knn", flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_command(repository, "moco_jax.knn", "--help").stdout
