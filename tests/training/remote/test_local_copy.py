"""The local copy of a workdir in a bucket: made, lost in part, older than the bucket."""

import errno
import os
import shutil
import signal
import threading

import pytest

from moco_jax.buckets import fetching
from moco_jax.buckets.client import Kind
from moco_jax.training.remote import run
from moco_jax.training.remote.run import opened
from tests.training.remote.test_run import (
    LAST,
    URL,
    begin,
    move_machine,
    place,
    quick,
    there,
    wait_for,
    write,
)

__all__ = ["quick"]


def test_a_copy_of_two_runs_is_set_aside_if_one_was_continued_elsewhere(
    bucket, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        patch.setattr(run._Copy, "_leave", lambda self: self._lock.release())
        with opened(URL) as local:
            (local / "cached").mkdir()
            begin(local / "cached", 1)
            record = place().with_name(f"{local.name}.json")
            wait_for(lambda: "starts.jsonl" in record.read_text())
    cache = os.environ["XDG_CACHE_HOME"]
    move_machine(monkeypatch, tmp_path)
    with opened(URL) as local:
        begin(local / "cached", 2)
        write(local, cached__metrics="other")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    with opened(URL) as local:
        assert (local / "cached/metrics.jsonl").read_text() == "other"


def test_a_copy_that_lost_its_checkpoints_gets_them_back(bucket, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run._Copy, "_leave", lambda self: self._lock.release())
        with opened(URL) as local:
            begin(local, 1)
            write(local, checkpoints__4__state="s", **{f"checkpoints__4__{LAST}": "l"})
            record = place().with_name(f"{local.name}.json")
            wait_for(lambda: f"checkpoints/4/{LAST}" in record.read_text())
    shutil.rmtree(local / "checkpoints")
    with opened(URL) as local:
        assert (local / "checkpoints/4/state").read_text() == "s"
    assert f"checkpoints/4/{LAST}" in there(bucket)


def test_a_copy_that_is_half_removed_at_the_end_is_no_copy(bucket, monkeypatch):
    def killed(folder, **_):
        (folder / "checkpoints/4/state").unlink()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit), opened(URL) as local:
        begin(local, 1)
        write(local, checkpoints__4__state="s", **{f"checkpoints__4__{LAST}": "l"})
        patch.setattr(run.shutil, "rmtree", killed)
    assert local.exists() and not place().with_name(f"{local.name}.json").exists()


def test_a_half_fetched_copy_is_fetched_again(bucket):
    write(bucket / "runs/x", metrics="1")
    begin(bucket / "runs/x", 1)
    write(place(), metrics="half")
    with opened(URL) as local:
        assert (local / "metrics.jsonl").read_text() == "1"


def test_ctrl_c_while_a_run_is_fetched(bucket, monkeypatch):
    going_on, read, asked = threading.Event(), run._Copy._read, []
    others = threading.enumerate()

    def slow(self):
        if not asked:
            asked.append(True)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert going_on.wait(60)
        read(self)

    monkeypatch.setattr(run._Copy, "_read", slow)
    with pytest.raises(KeyboardInterrupt), opened(URL):
        pytest.fail("the run began")
    going_on.set()
    wait_for(lambda: not set(threading.enumerate()) - set(others))
    assert not there(bucket)
    with opened(URL):  # the same process may start again
        pass


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_bucket(bucket, folder, caplog):
    with pytest.raises(ZeroDivisionError), opened(URL) as local:
        folder.problem = Kind.DENIED
        write(local, metrics="1")
        raise ZeroDivisionError
    assert f"{URL} does not have the last state of the run" in caplog.text
    assert (place() / "metrics.jsonl").is_file()


def test_a_disk_that_is_full_while_a_run_is_fetched(bucket, monkeypatch):
    write(bucket / "runs/x", metrics="1")
    begin(bucket / "runs/x", 1)
    before = there(bucket)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "download", full)
    with pytest.raises(
        ValueError, match=f"--workdir={URL}: can't write .*: No space left .* set XD"
    ):
        opened(URL).__enter__()
    assert there(bucket) == before
