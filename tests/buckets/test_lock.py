"""A lock in a bucket: held, released, abandoned, taken over."""

import json
import os
import subprocess
import sys

import pytest

from moco_jax.buckets import lock as lock_lib
from moco_jax.buckets import objects
from moco_jax.buckets.client import Kind, Over
from moco_jax.buckets.lock import Held, Lock

URL = "s3://b/runs/x/.lock"


class Clock:
    """Time that passes only while someone sleeps; `then` is called after each sleep."""

    def __init__(self):
        self.seconds, self.then = 1000.0, lambda: None

    def sleep(self, seconds):
        self.seconds += seconds
        self.then()


@pytest.fixture
def clock(folder, monkeypatch):
    made = Clock()
    monkeypatch.setattr(lock_lib.time, "sleep", made.sleep)
    monkeypatch.setattr(lock_lib, "_now", lambda: made.seconds)
    return made


def on_another_machine(lock: Lock) -> Lock:
    """Makes a lock look as if another machine had written it."""
    content = json.loads(objects.read_whole(URL, 9999)[1]) | {"host": "other"}
    lock._entry = objects.write(URL, json.dumps(content).encode())
    return lock


def test_a_released_lock_can_be_taken(clock):
    first, second = Lock(URL), Lock(URL)
    first.acquire()
    first.release()
    assert first.renew(after=0.0)  # a thread that is late
    second.acquire()
    assert clock.seconds == 1000.0 and second.renew(after=0.0)


def test_a_lock_that_is_renewed_is_held(clock, caplog):
    first, second = Lock(URL), Lock(URL)
    first.acquire()
    clock.then = first.renew
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        second.acquire()
    assert 1015 <= clock.seconds <= 1025
    assert "waiting up to 60 s to see whether it still runs" in caplog.text
    assert first.renew(after=0.0)


def test_an_abandoned_lock_is_taken_over(clock):
    first, second = Lock(URL), Lock(URL)
    first.acquire()
    on_another_machine(first)
    second.acquire()
    assert clock.seconds >= 1060
    assert not first.renew(after=0.0) and first.lost and second.renew(after=0.0)
    first.release()  # nothing happens
    assert second.renew(after=0.0)


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(clock):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    first, second = Lock(URL), Lock(URL)
    first.acquire()
    content = json.loads(objects.read_whole(URL, 9999)[1]) | {"pid": ended.pid}
    objects.write(URL, json.dumps(content).encode())
    second.acquire()
    assert clock.seconds == 1000.0


def test_a_lock_that_is_released_meanwhile_is_taken(clock):
    first, second = Lock(URL), Lock(URL)
    first.acquire()
    clock.then = lambda: objects.remove(URL)
    second.acquire()
    assert clock.seconds < 1010


def test_a_lock_that_somebody_removed_is_written_again(clock):
    lock = Lock(URL)
    lock.acquire()
    objects.remove(URL)
    assert lock.renew(after=0.0) and objects.stat(URL)


def test_a_lock_that_is_gone_after_a_long_sleep_is_lost(clock):
    sleeper, other = Lock(URL), Lock(URL)
    sleeper.acquire()
    on_another_machine(sleeper)
    other.acquire()  # while the machine of the first one sleeps
    other.release()
    assert not sleeper.renew(after=0.0) and sleeper.lost
    Lock(URL).acquire()


def test_a_server_that_ignores_conditions(clock, folder, monkeypatch):
    write = folder._write
    monkeypatch.setattr(folder, "_write", lambda key, data, over: write(key, data, Over.ANYTHING))
    first = Lock(URL)
    first.acquire()
    clock.then = first.renew
    with pytest.raises(Held):
        Lock(URL).acquire()


def test_a_renewal_waits_for_no_server(clock, folder, monkeypatch):
    lock = Lock(URL)
    lock.acquire()
    write = folder._write

    def vanish(key, data, over):
        folder.problem = Kind.PASSING
        monkeypatch.setattr(folder, "_write", write)
        raise lock_lib.objects.Problem(Kind.CHANGED, "412")

    monkeypatch.setattr(folder, "_write", vanish)
    objects.bucket.cache_clear()
    monkeypatch.setattr(objects, "_sleep", lambda *_: pytest.fail("it waits"))
    with pytest.raises(objects.BucketError, match="does not answer"):
        lock.renew(after=0.0)


def test_a_write_whose_answer_is_lost_is_our_own(clock, folder, monkeypatch):
    write = folder._write

    def lose(key, data, over):
        write(key, data, over)
        monkeypatch.setattr(folder, "_write", write)
        objects.bucket.cache_clear()
        raise lock_lib.objects.Problem(Kind.CHANGED, "412")

    monkeypatch.setattr(folder, "_write", lose)
    lock = Lock(URL)
    lock.acquire()
    assert clock.seconds == 1000.0 and lock.renew(after=0.0)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"pid": "x", "host": 3}'])
def test_a_damaged_lock_is_taken_over_after_a_while(clock, content):
    objects.write(URL, content)
    Lock(URL).acquire()
    assert clock.seconds >= 1060


def test_a_server_without_conditional_writes(folder, clock, caplog):
    folder.conditional = False
    lock = Lock(URL)
    lock.acquire()
    assert f"no lock for {URL}" in caplog.text and "one run at a time" in caplog.text
    assert lock.renew(after=0.0)
    folder.problem = Kind.DENIED
    with pytest.raises(objects.BucketError, match="permission denied"):
        Lock(URL).acquire()
