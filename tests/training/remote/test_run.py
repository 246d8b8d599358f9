"""A workdir in a bucket: begun, continued, locked, not saved."""

import json
import os
import pathlib
import re
import signal
import threading
import time

import pytest

from moco_jax.buckets import fetching, objects
from moco_jax.buckets.client import Kind
from moco_jax.training.checkpoints import NotSaved
from moco_jax.training.loop import Interrupted
from moco_jax.training.outputs import ending
from moco_jax.training.remote import copies, run
from moco_jax.training.remote.run import opened
from tests.buckets.memory import contents

URL = "s3://b/runs/x"
LAST = "_CHECKPOINT_METADATA"


@pytest.fixture(autouse=True)
def quick(monkeypatch, folder):
    monkeypatch.setattr(run, "SCAN_EVERY", 0.02)
    monkeypatch.setattr(run, "_RETRY_EVERY", 0.02)
    monkeypatch.setattr(run, "_PATIENCE", 0.3)
    monkeypatch.setattr(run, "_PATIENCE_AFTER_ERROR", 0.1)
    monkeypatch.setattr(run, "_PATIENCE_AFTER_SIGTERM", 0.1)
    others = threading.enumerate()
    yield
    for thread in set(threading.enumerate()) - set(others):
        thread.join(60)  # it would write to the bucket of the next test


def place() -> pathlib.Path:
    return fetching.cache("runs", URL)


def write(folder: pathlib.Path, **files: str) -> None:
    """Writes files in this order: the last one of a checkpoint comes last."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("metrics", "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def begin(folder: pathlib.Path, number: int) -> None:
    """Does what a start does first."""
    with open(folder / "starts.jsonl", "a") as file:
        file.write(f'{{"start": {number}}}\n')


def there(bucket) -> dict[str, str]:
    return contents(bucket / "runs/x")


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def move_machine(monkeypatch, tmp_path, name: str = "other") -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_a_local_workdir_is_itself(tmp_path):
    with opened(tmp_path / "x") as local:
        assert local == tmp_path / "x" and not copies.is_own(local)
    with pytest.raises(ValueError, match="--workdir=https://b/x must be a folder, or the URL of"):
        opened("https://b/x").__enter__()


def test_a_run_is_in_the_bucket_and_its_copy_is_gone(bucket):
    with opened(URL) as local:
        write(local, metrics="1", compiled__cpu__x="program")
        begin(local, 1)
        write(local, checkpoints__4__state="s", **{f"checkpoints__4__{LAST}": "l"})
        write(local, **{"checkpoints__8.orbax-checkpoint-tmp__state": "s"})
        wait_for(lambda: f"checkpoints/4/{LAST}" in there(bucket))
        assert json.loads(there(bucket)[".lock"])["pid"] == os.getpid()
        (local / "checkpoints/8.orbax-checkpoint-tmp/state").unlink()
    files = {"metrics.jsonl", "starts.jsonl", f"checkpoints/4/{LAST}", "checkpoints/4/state"}
    assert there(bucket).keys() == files
    assert [path.name for path in place().parent.iterdir()] == [f"{place().name}.lock"]


def test_paths_of_the_copy_are_shown_as_urls(bucket):
    with opened(f"{URL}/") as local:
        assert ending.shown(local / "checkpoints/4") == f"{URL}/checkpoints/4"
        assert copies.described(local) == f"{URL} (local copy {local})"
        assert local.name.startswith("x-")
    assert not copies.url_of(local)


def test_another_machine_continues(bucket, monkeypatch, tmp_path):
    with opened(URL) as local:
        begin(local, 1)
        write(local, metrics="1", **{f"checkpoints__4__{LAST}": "l"})
    write(bucket / "runs/x", compiled__x="hostile", **{"checkpoints__8__state": "half"})
    move_machine(monkeypatch, tmp_path)
    with opened(URL) as local:
        found = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
        assert found == {"starts.jsonl", "metrics.jsonl", f"checkpoints/4/{LAST}"}


def test_what_the_bucket_did_not_get_is_continued_here(bucket, folder, caplog):
    with pytest.raises(NotSaved, match=re.escape(str(place()))) as error, opened(URL) as local:
        begin(local, 1)
        wait_for(lambda: "starts.jsonl" in there(bucket))
        folder.problem = Kind.PASSING
        write(local, metrics="new")
    assert "Start the same command again on this machine" in str(error.value)
    assert there(bucket).keys() == {"starts.jsonl", ".lock"}
    folder.problem = None
    objects.remove(f"{URL}/.lock")  # of this process, which lives
    with opened(URL) as local:
        assert (local / "metrics.jsonl").read_text() == "new"
    assert there(bucket).keys() == {"starts.jsonl", "metrics.jsonl"}
    assert "going on with the local copy of s3://b/runs/x" in caplog.text


def killed(monkeypatch) -> pathlib.Path:
    """Leaves the local copy of a run that was killed, and what it wrote."""
    with monkeypatch.context() as patch:
        patch.setattr(run._Copy, "_leave", lambda self: self._lock.release())
        with opened(URL) as local:
            begin(local, 1)
            write(local, metrics="1")
            wait_for(lambda: "starts.jsonl" in place().with_name(f"{local.name}.json").read_text())
    return local


def test_a_copy_is_set_aside_if_the_run_was_continued_elsewhere(
    bucket, monkeypatch, tmp_path, caplog
):
    here, cache = killed(monkeypatch), os.environ["XDG_CACHE_HOME"]
    write(here, metrics="never copied")
    move_machine(monkeypatch, tmp_path)
    with opened(URL) as local:
        begin(local, 2)
        write(local, metrics="other")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    with opened(URL) as local:
        assert (local / "metrics.jsonl").read_text() == "other"
    (aside,) = (path for path in here.parent.iterdir() if path.is_dir())
    assert (aside / "metrics.jsonl").read_text() == "never copied"
    assert "was continued elsewhere" in caplog.text and str(aside) in caplog.text


def test_a_copy_is_set_aside_if_the_run_was_removed(bucket, monkeypatch):
    here = killed(monkeypatch)
    for name in there(bucket):
        (bucket / "runs/x" / name).unlink()
    with opened(URL) as local:
        assert not list(local.iterdir())
    assert not there(bucket)
    assert len([path for path in here.parent.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind.DENIED, f"--workdir={URL}: permission denied for {URL}/.lock .*read, write and del"),
        (Kind.NO_BUCKET, f"--workdir={URL}: there is no bucket s3://b: correct --workdir"),
        (Kind.NO_CREDENTIALS, f"--workdir={URL}: there are no credentials for s3://b"),
    ],
)
def test_a_bucket_that_can_not_be_used_is_an_error_at_once(folder, kind, message):
    folder.problem = kind
    with pytest.raises(ValueError, match=message), opened(URL):
        pytest.fail("the run began")


def test_a_second_start_on_this_machine(bucket):
    with opened(URL):
        with pytest.raises(ValueError, match=f"process is running in {URL} .*another --workdir$"):
            opened(URL).__enter__()
        assert ".lock" in there(bucket)


def test_a_second_start_elsewhere(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr("moco_jax.buckets.lock._LOOK_EVERY", 0.05)
    monkeypatch.setattr(run, "RENEWED_EVERY", 0.03)
    with opened(URL):
        move_machine(monkeypatch, tmp_path)
        with pytest.raises(ValueError, match=f"running in {URL} .process {os.getpid()} on "):
            opened(URL).__enter__()


def test_a_server_that_is_gone_meanwhile(bucket, folder, caplog):
    with opened(URL) as local:
        begin(local, 1)
        wait_for(lambda: "starts.jsonl" in there(bucket))
        folder.problem = Kind.PASSING
        write(local, metrics="1", **{f"checkpoints__4__{LAST}": "l"})
        wait_for(lambda: "can't be written" in caplog.text)
        time.sleep(0.2)
        folder.problem = None
        wait_for(lambda: "is written again; nothing is missing" in caplog.text)
        assert f"checkpoints/4/{LAST}" in there(bucket)
    said = [x.getMessage() for x in caplog.records if x.getMessage().startswith(f"{URL} ")]
    why = "s3://b (does not answer|did not answer for)"
    assert len(said) == 2 and re.match(f"{URL} can't be written: {why} ", said[0])
    assert f"The run goes on; what is missing is in {local}" in said[0]


def test_a_checkpoint_that_is_not_complete_stays_here(bucket):
    with pytest.raises(NotSaved, match="or a checkpoint is incomplete"), opened(URL) as local:
        write(local, checkpoints__4__state="s")
    assert (place() / "checkpoints/4/state").is_file()


def test_a_permission_that_is_lost_meanwhile_is_an_error_at_the_end(bucket, folder, caplog):
    with pytest.raises(NotSaved, match="permission denied"), opened(URL) as local:
        begin(local, 1)
        wait_for(lambda: "starts.jsonl" in there(bucket))
        folder.problem = Kind.DENIED
        write(local, **{f"checkpoints__4__{LAST}": "l"})
        wait_for(lambda: "can't be written: permission denied" in caplog.text)
    assert (place() / "checkpoints/4" / LAST).is_file()


@pytest.fixture
def caught():
    """SIGTERM is caught, as the loop does."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_run_that_was_taken_over_kills_no_program_that_catches_no_signals(
    bucket, monkeypatch, caplog
):
    monkeypatch.setattr(run, "RENEWED_EVERY", 0.03)
    monkeypatch.setattr(run.signal, "pthread_kill", lambda *_: pytest.fail("it is killed"))
    message = f"another process has taken over {URL}, so this run stopped"
    with pytest.raises(ValueError, match=message), opened(URL) as local:
        objects.write(f"{URL}/.lock", b'{"host": "other"}')
        wait_for(lambda: f"what this run writes stays in {local}" in caplog.text)


@pytest.mark.usefixtures("caught")
def test_a_run_that_was_taken_over_stops(bucket, monkeypatch):
    monkeypatch.setattr(run, "RENEWED_EVERY", 0.03)
    came = []
    monkeypatch.setattr(run.signal, "pthread_kill", lambda *args: came.append(args[1]))
    message = f"another process has taken over {URL}, so this run stopped. The local copy {place()}"
    with pytest.raises(ValueError, match=re.escape(message)), opened(URL) as local:
        objects.write(f"{URL}/.lock", b'{"host": "other"}')
        wait_for(lambda: came)
        write(local, metrics="must not be copied")
        raise Interrupted("stopped", signal.SIGTERM)
    assert came == [signal.SIGTERM] and there(bucket) == {".lock": '{"host": "other"}'}
    assert (place() / "metrics.jsonl").is_file()


def test_the_lock_is_renewed_after_an_error_that_nobody_expects(bucket, monkeypatch, caplog):
    monkeypatch.setattr(run, "RENEWED_EVERY", 0.03)
    renew, calls = run.Lock.renew, []

    def fail_once(self, after=0.0):
        calls.append(after)
        if len(calls) == 1:
            raise RuntimeError("unexpected")
        return renew(self, after)

    with opened(URL):
        monkeypatch.setattr(run.Lock, "renew", fail_once)
        wait_for(lambda: f"{URL}: unexpected; it is tried again" in caplog.text)
        before = there(bucket)[".lock"]
        wait_for(lambda: there(bucket)[".lock"] != before)


def test_the_lock_is_renewed_while_the_last_files_are_copied(bucket, monkeypatch):
    monkeypatch.setattr(run, "RENEWED_EVERY", 0.03)
    renewed, scan = [], run.Mirror.scan

    def slow(self, *, final=False):
        before = there(bucket)[".lock"]
        if final:
            wait_for(lambda: there(bucket)[".lock"] != before)
            renewed.append(True)
        return scan(self, final=final)

    monkeypatch.setattr(run.Mirror, "scan", slow)
    with opened(URL) as local:
        write(local, metrics="1")
    assert renewed and there(bucket) == {"metrics.jsonl": "1"}


def test_an_error_of_the_run_is_copied_and_raised(bucket):
    with pytest.raises(ZeroDivisionError), opened(URL) as local:
        write(local, metrics="1")
        raise ZeroDivisionError
    assert there(bucket) == {"metrics.jsonl": "1"} and not place().exists()


def test_a_second_ctrl_c_waits_for_nothing(bucket, folder, capsys):
    with pytest.raises(KeyboardInterrupt), opened(URL) as local:
        folder.problem = Kind.PASSING
        write(local, metrics="1")
        raise KeyboardInterrupt
    assert (place() / "metrics.jsonl").is_file()
    assert f"{place()} has what is not in {URL} yet" in capsys.readouterr().out


def test_ctrl_c_ends_the_wait_for_the_server(folder, monkeypatch):
    monkeypatch.setattr(run, "_PATIENCE_AFTER_ERROR", 600.0)
    sleep, pressed, others = time.sleep, [], threading.enumerate()

    def interrupt(seconds):
        if not pressed:  # the thread sleeps again while the first Ctrl-C is handled
            pressed.append(True)
            signal.pthread_kill(run.threading.main_thread().ident or 0, signal.SIGINT)
        sleep(seconds)

    with (
        pytest.raises(KeyboardInterrupt, match=f"stopped at once; .* not in {URL} yet"),
        opened(URL) as local,
    ):
        folder.problem = Kind.PASSING
        write(local, metrics="1")
        monkeypatch.setattr(run.time, "sleep", interrupt)
        raise Interrupted("stopped", signal.SIGINT)
    wait_for(lambda: not set(threading.enumerate()) - set(others))  # nothing writes later


@pytest.mark.parametrize(
    "workdir, message",
    [
        ("s3:/b/x", "--workdir=s3:/b/x is no URL .*did you mean --workdir=s3://b/x?"),
        ("s3//b/x", "--workdir=s3//b/x is no URL .*did you mean --workdir=s3://b/x?"),
        ("s3://", "--workdir=s3:// names no bucket; allowed: s3://bucket/x"),
        ("s3://b", "--workdir=s3://b is a whole bucket; it must name a folder there"),
        ("s3://b/", "--workdir=s3://b/ is a whole bucket"),
        ("s3://b/x+s3://b/y", "names several folders; allowed is one"),
        ("HTTPS://b/x", "must be a folder, or the URL of one: s3://bucket/runs/a or gs://"),
    ],
)
def test_what_is_no_folder_of_a_bucket_is_refused(bucket, tmp_path, monkeypatch, workdir, message):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        opened(workdir).__enter__()
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_of_another_program_is_neither_fetched_nor_changed(bucket, folder):
    write(bucket / "runs/x", report="my thesis", a__shard="large")
    message = r"--workdir=s3://b/runs/x has objects \(2: a/shard, report\) but no starts.jsonl"
    with pytest.raises(ValueError, match=message):
        opened(URL).__enter__()
    assert there(bucket) == {"report": "my thesis", "a/shard": "large"}
    assert not [name for name, key in folder.requests if name == "read"] and not place().exists()


def test_errors_name_the_url_and_not_the_copy(bucket):
    with (
        pytest.raises(ValueError, match=f"^{URL}/checkpoints can't be continued$"),
        opened(URL) as local,
    ):
        raise ValueError(f"{local}/checkpoints can't be continued")
    with pytest.raises(ValueError, match=re.escape(str(place()))), opened(URL) as local:
        raise ValueError(f"{local} can't be written") from OSError("disk full")


def test_a_scheme_in_capitals_is_the_same_workdir(bucket):
    with opened(f"S3{URL[2:]}"), pytest.raises(ValueError, match="another process is running"):
        opened(URL).__enter__()


def test_a_cache_folder_that_can_not_be_written(bucket, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message = f"--workdir={URL}: can't write a local copy in .*/file/.* set XDG_CACHE_HOME to"
    with pytest.raises(ValueError, match=message):
        opened(URL).__enter__()
    assert there(bucket) == {}
