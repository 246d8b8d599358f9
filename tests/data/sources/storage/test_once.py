"""Of processes that start at once, one lists the shards of a bucket."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from moco_jax.data.sources.shards import index_file, once
from moco_jax.terminal.paths import cache_folder
from tests.data.sources.shards.writing import samples, write_shard

URL = "s3://b/s/a-0.tar"


@pytest.fixture
def listed(bucket, folder, monkeypatch):
    """The times at which a shard is listed, which takes a while."""
    write_shard(bucket / "s/a-0.tar", samples(["1a", "2b"]))
    times, listing = [], index_file.list_samples

    def slow(path):
        times.append(time.monotonic())
        time.sleep(0.5)
        return listing(path)

    monkeypatch.setattr(index_file, "list_samples", slow)
    return times


def open_at_once(count):
    found = []
    opened = lambda: found.append(index_file.open_shard(URL))  # noqa: E731
    threads = [threading.Thread(target=opened) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_lists_and_the_others_wait(listed):
    found = open_at_once(4)
    assert len(listed) == 1 and len(found) == 4
    assert all(len(shard.samples) == 2 and shard.saved for shard in found)
    [index] = os.listdir(cache_folder())
    assert index.endswith(index_file.ENDING)  # no lock is left


def test_waiting_has_an_end(listed, monkeypatch):
    both, listing = threading.Barrier(2, timeout=60), index_file.list_samples

    def together(path):
        both.wait()  # the second one lists too, or neither
        return listing(path)

    monkeypatch.setattr(index_file, "list_samples", together)
    monkeypatch.setattr(once, "PATIENCE", 0.1)
    assert len(open_at_once(2)) == len(listed) == 2


def test_a_failure_does_not_lock_the_others_out(listed, bucket):
    content = (bucket / "s/a-0.tar").read_bytes()
    (bucket / "s/a-0.tar").write_bytes(b"x" * 1024)
    with pytest.raises(ValueError, match="a-0.tar is damaged"):
        index_file.open_shard(URL)
    (bucket / "s/a-0.tar").write_bytes(content)
    assert len(index_file.open_shard(URL).samples) == 2


def test_a_killed_process_ends_its_lock(listed):
    place = index_file._in_cache(URL)
    code = (
        "import sys, time\nfrom moco_jax.data.sources.shards import once\n"
        "with once.alone(sys.argv[1]):\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        begun = time.monotonic()
        threading.Timer(0.3, other.kill).start()
        assert len(index_file.open_shard(URL).samples) == 2
        assert 0.2 < time.monotonic() - begun < 30


def test_a_cache_folder_that_can_not_be_written_is_no_error(listed):
    pathlib.Path(cache_folder()).write_bytes(b"mine")
    shard = index_file.open_shard(URL)
    assert len(shard.samples) == 2 and not shard.saved
