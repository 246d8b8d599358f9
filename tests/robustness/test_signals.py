"""Signals: exit 75 means saved, however often SIGTERM comes; a second Ctrl-C ends at once."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from moco_jax.training import interruption
from moco_jax.training.integrity import checkpoint_files
from tests.conftest import devices_flags

SCRIPT = """
    import contextlib, os, sys, time
    from moco_jax import main
    from moco_jax.terminal import command_line
    from moco_jax.pretraining import pretrain
    from moco_jax.terminal import command_line
    from moco_jax.training import checkpoints
    from moco_jax.training.outputs.metrics_log import MetricsLog
    from tests.tiny import tiny_config, tiny_sources

    folder, go = sys.argv.pop(), sys.argv.pop()
    config = tiny_config(knn__every_epochs=0.0, steps=10_000, checkpoint_every=4)
    write, wait = MetricsLog.write, checkpoints.Checkpoints.wait

    def write_and_tell(self, step, scalars):
        write(self, step, scalars)
        with contextlib.suppress(OSError):  # /dev/full
            print("step", step, flush=True)
        time.sleep(0.2)  # a run that lasts

    def wait_long(self):  # a save that takes long
        if self._saving and self._saving % 4:  # of the signal
            with contextlib.suppress(OSError):
                print("saving", self._saving, flush=True)
            while not os.path.exists(go):
                time.sleep(0.1)
        return wait(self)

    MetricsLog.write = write_and_tell
    checkpoints.Checkpoints.wait = wait_long
    command_line.config = lambda: config
    main.TASKS["pretrain"] = lambda *_: pretrain.pretrain(config, folder, sources=tiny_sources())
    if __name__ == "__main__":
        sys.argv.append("--config=configs/digits.py")
        main.run()
"""


@pytest.fixture
def start(repository):
    """Starts a run whose last save takes until there is a file, `go`."""
    started = []

    def start(folder: pathlib.Path, go: pathlib.Path, output=subprocess.PIPE) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(go), str(folder)],
            cwd=repository,
            env=os.environ | {"PYTHONPATH": str(repository), "XLA_FLAGS": devices_flags(1)},
            stdout=output,
            stderr=output,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, text: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(process.communicate()[1])


def test_sigterm_that_is_repeated_while_the_state_is_saved(tmp_path, start):
    folder, go = tmp_path / "run", tmp_path / "go"
    process = start(folder, go)
    wait_for(process, "step 5")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "saving")
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    go.touch()
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 75, errors
    [saved] = [line for line in errors.splitlines() if "saved in" in line]
    step = int(saved.split("at step ")[1].split(";")[0])
    found = checkpoint_files.newest_whole(folder / "checkpoints")
    assert found and found.step == step and not found.damaged
    assert "Traceback" not in errors


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_saved(tmp_path, start):
    process = start(tmp_path, tmp_path / "absent")
    wait_for(process, "step 9")
    process.send_signal(signal.SIGINT)
    wait_for(process, "saving")
    # A person presses Ctrl-C again: Python ignores an exception within a callback of the memory.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 130, errors
    newest = checkpoint_files.steps(tmp_path / "checkpoints")[0]
    where = tmp_path / "checkpoints" / str(newest)
    line = f"stopped at once; the newest complete checkpoint is {where}"
    assert [x for x in errors.splitlines() if "stopped" in x] == [line]
    assert "Traceback" not in errors


def test_output_on_a_full_disk_changes_no_exit_code(tmp_path, start):
    with open("/dev/full", "w") as full:
        process = start(tmp_path, pathlib.Path("/"), full)
    saved = tmp_path / "checkpoints" / "4"
    deadline = time.monotonic() + 900
    while not saved.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=900) == 75
    found = checkpoint_files.newest_whole(tmp_path / "checkpoints")
    assert found and found.step > 4


def test_after_the_first_signal_only_ctrl_c_has_its_usual_effect():
    for first in (signal.SIGTERM, signal.SIGINT):
        with interruption.watch(always_waits=True) as asked:
            os.kill(os.getpid(), first)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert asked.by == first
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)  # Python handles it before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
