"""A full disk: no logger ends a run, no save replaces the last good one, and nothing is silent."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from moco_jax import main
from moco_jax.pretraining import pretrain
from moco_jax.training import checkpoints, loop
from moco_jax.training.integrity import checkpoint_files, checksums
from moco_jax.training.outputs import appending
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.conftest import devices_flags
from tests.tiny import tiny_config, tiny_sources

ONE = jax.devices()[:1]
CONFIG = tiny_config(knn__every_epochs=0.0)


def train(folder: pathlib.Path, config=CONFIG):
    return pretrain.pretrain(config, folder, devices=ONE, sources=tiny_sources())


def steps(folder: pathlib.Path) -> list[int]:
    return sorted(checkpoint_files.steps(folder / "checkpoints"))


def unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    return list((folder / "checkpoints").glob("*tmp*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return checksums.summarize(train(folder)).arrays


@pytest.fixture
def full(monkeypatch):
    """Makes saves of some steps fail: at once, or later in Orbax's thread."""

    def full(*failing: int, later: bool = False, times: int = 10**6):
        save = checkpoints.ocp.CheckpointManager.save
        wait = checkpoints.ocp.CheckpointManager.wait_until_finished
        error, left = OSError(errno.ENOSPC, "No space left on device"), [times]
        late = []

        def failing_save(self, step, *args, **kwargs):
            if step in failing and left[0]:
                left[0] -= 1
                if not later:
                    raise error
                late.append(1)
                return True
            return save(self, step, *args, **kwargs)

        def failing_wait(self):
            if late:
                late.clear()
                raise error
            return wait(self)

        monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", failing_save)
        monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "wait_until_finished", failing_wait)
        monkeypatch.setattr(checkpoints, "_RETRIES", (0, 0))

    return full


@pytest.mark.parametrize("later", [False, True])
def test_a_save_that_fails_is_told_and_the_run_goes_on(tmp_path, whole, full, caplog, later):
    full(8, later=later)
    state = train(tmp_path)
    assert checksums.summarize(state).arrays == whole and steps(tmp_path) == [4, 10]
    [warning] = [r.getMessage() for r in caplog.records if "could not be saved" in r.getMessage()]
    assert "step 8 could not be saved in" in warning and "No space left on device" in warning
    assert f"Last good checkpoint: {tmp_path / 'checkpoints' / '4'}." in warning
    train(tmp_path)  # it is whole


@pytest.mark.parametrize("later", [False, True])
def test_the_last_state_is_saved_again(tmp_path, whole, full, later):
    full(10, later=later, times=2)
    assert checksums.summarize(train(tmp_path)).arrays == whole and steps(tmp_path) == [8, 10]


@pytest.mark.parametrize("later", [False, True])
def test_a_last_state_that_can_not_be_saved_is_an_error(tmp_path, full, later):
    full(10, later=later)
    with pytest.raises(checkpoints.NotSaved) as error:
        train(tmp_path)
    message = str(error.value)
    assert "the state of step 10 is not saved" in message and "start the same command" in message
    assert f"Last good checkpoint: {tmp_path / 'checkpoints' / '8'}." in message
    assert steps(tmp_path) == [4, 8]


@pytest.mark.parametrize("times", [1, 10**6])
def test_after_sigterm_the_exit_code_says_whether_the_state_is_saved(
    tmp_path, monkeypatch, full, times, capsys
):
    write = MetricsLog.write

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", interrupt)
    monkeypatch.setitem(main.TASKS, "pretrain", lambda *_: train(tmp_path))
    monkeypatch.setattr(main.command_line, "config", lambda: CONFIG)
    monkeypatch.setattr(main, "_WORKDIR", type("Flag", (), {"value": str(tmp_path)}))
    full(6, times=times)
    saved = times == 1
    if saved:
        assert main.main() == 75
    else:
        with pytest.raises(SystemExit, match="^1$"):
            main.main()
    assert steps(tmp_path) == [4, 6] if saved else [4]
    assert ("saved in" if saved else "error: the state of step 6 is not saved") in (
        capsys.readouterr().err
    )


def test_logs_that_can_not_be_written_wait(tmp_path, whole, monkeypatch, caplog):
    """For a while every write of a log fails."""
    folder, failing = tmp_path, []
    real = open

    def broken(path, mode="r", **kwargs):
        if failing and mode == "ab":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, **kwargs)

    write = MetricsLog.write

    def note(self, step, scalars):
        failing[:] = [1] if 3 <= step < 7 else []
        write(self, step, scalars)

    monkeypatch.setattr(appending, "open", broken, raising=False)
    monkeypatch.setattr(MetricsLog, "write", note)
    assert checksums.summarize(train(folder)).arrays == whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert "metrics.jsonl can't be written" in caplog.text
    assert "metrics.jsonl is written again" in caplog.text


@pytest.mark.parametrize("name", ["starts.jsonl", "config.json", "parameters.txt"])
def test_a_start_that_can_not_write_its_files_is_one_message(tmp_path, name):
    (tmp_path / name).mkdir()
    if name != "starts.jsonl":
        (tmp_path / "starts.jsonl").touch()
    with pytest.raises(ValueError, match=f"{name} can't be written: "):
        train(tmp_path)


SCRIPT = """
    import resource, signal, sys
    from moco_jax.pretraining import pretrain
    from moco_jax.training import checkpoints
    from tests.tiny import tiny_config, tiny_sources

    checkpoints._RETRIES = (0, 0)
    if __name__ == "__main__":
        folder, limit = sys.argv[1], int(sys.argv[2])
        if limit:  # of the bytes of a file
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        config = tiny_config(knn__every_epochs=0.0)
        try:
            pretrain.pretrain(config, folder, sources=tiny_sources())
        except (checkpoints.NotSaved, ValueError) as error:
            print(error)
            sys.exit(3)
"""


def run(repository, folder, limit=0):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(limit)],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository), "XLA_FLAGS": devices_flags(1)},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_files_that_can_not_grow(tmp_path, repository, whole):
    """No file may have more than 20 kB: not the arrays of a checkpoint."""
    done = run(repository, tmp_path, 20_000)
    assert done.returncode == 3, done.stderr
    assert "the state of step 10 is not saved" in done.stdout
    assert "Traceback" not in done.stderr and done.stderr.count("could not be saved") >= 3
    assert steps(tmp_path) == [] and unfinished(tmp_path) == []
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10
    # With space the same command starts again and ends.
    assert checksums.summarize(train(tmp_path)).arrays == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("kilobytes", [64, 1600])
def test_a_disk_that_is_full(tmp_path, repository, kilobytes):
    """A small file system: for no checkpoint, or for one but not for three."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container can't mount")
    try:
        done = run(repository, tmp_path)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "could not be saved" in done.stderr and "No space left" in done.stderr, done.stderr
        kept = steps(tmp_path)
        assert kept == ([] if kilobytes == 64 else [4])
        if kept:
            found = checkpoint_files.newest_whole(tmp_path / "checkpoints")
            assert found and found.step == kept[-1]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_interrupted_is_not_raised_without_a_saved_state(tmp_path, full, monkeypatch):
    write = MetricsLog.write

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "write", interrupt)
    full(3, times=4)  # all tries of the first run
    with pytest.raises(checkpoints.NotSaved, match="Last good checkpoint: none"):
        train(tmp_path)
    with pytest.raises(loop.Interrupted, match="stopped by Ctrl-C at step 3; saved in"):
        train(tmp_path)
