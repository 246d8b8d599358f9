"""Images in buckets that are kept on the disk."""

import multiprocessing
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest

from moco_jax.data.sources.storage import image_cache
from moco_jax.data.sources.storage.image_cache import Cache
from moco_jax.terminal.paths import cache_folder
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.storage.test_sources import described, write_all
from tests.data.sources.stores import open_images, write_tar

NAME = "01234567-" + "ab" * 16


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 64 << 20)


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch):
    monkeypatch.setattr(image_cache, "_FREE", 0)


def kept(root=None):
    root = root or pathlib.Path(cache_folder(), "images")
    return sorted(path for path in pathlib.Path(root).rglob("*") if path.is_file())


def names(count, group="01234567"):
    """Returns names whose files lie in one folder."""
    return [f"{group}-{i:028x}0000" for i in range(count)]


@pytest.mark.parametrize("path", ["x.tar", "x.zip", "folder", "shards", "plain", "x.parquet"])
def test_the_second_epoch_asks_nothing(bucket, folder, path):
    write_all(bucket)
    expected = described(open_images(f"s3://b/{path}"))
    train = open_images(f"s3://b/{path}", cache_gigabytes=0.1).train
    first = [train.read(i) for i in range(len(train))]
    folder.requests.clear()
    assert [train.read(i) for i in range(len(train))] == first == expected[0][-1]
    assert not folder.requests
    again = open_images(f"s3://b/{path}", cache_gigabytes=0.1).train  # another run
    folder.requests.clear()
    again.read(0)
    assert len(folder.requests) == ("x.parquet" == path or "plain" == path)  # its offsets


def test_nothing_is_kept_by_default(bucket, folder):
    write_tar(bucket / "x.tar", ["a/1.jpg", "b/2.jpg"])
    train = open_images("s3://b/x.tar").train
    train.read(0)
    assert not kept()
    assert not open_images(bucket / "x.tar", cache_gigabytes=1).notes[1:]
    opened = open_images("s3://b/x.tar", cache_gigabytes=1)
    assert opened.notes[-1].endswith("images: at most 1 GB (data.cache_gigabytes)")
    train.read(0)  # of a source that is open already
    assert not kept()


def test_a_replaced_object_is_read_again(bucket, folder):
    write_shard(bucket / "s/a-0.tar", samples(["1a", "2b"]))
    train = open_images("s3://b/s", cache_gigabytes=1).train
    assert train.read(0) == b"1a"
    write_shard(bucket / "s/a-0.tar", samples(["1c", "2d"]))
    os.utime(bucket / "s/a-0.tar", ns=(1, 1))
    assert open_images("s3://b/s", cache_gigabytes=1).train.read(0) == b"1c"


def test_a_server_without_versions_is_not_kept(bucket, folder, monkeypatch):
    entry = folder._entry
    monkeypatch.setattr(folder, "_entry", lambda key: entry(key)._replace(version=""))
    write_tar(bucket / "x.tar", ["a/1.jpg"])
    open_images("s3://b/x.tar", cache_gigabytes=1).train.read(0)
    assert not kept()


@pytest.mark.parametrize("change", ["zeros", "shorter", "longer", "empty", "renamed", "folder"])
def test_damaged_files_are_no_images(cache, tmp_path, change):
    data = np.random.default_rng(0).bytes(9000)
    cache.put(NAME, data)
    [path] = kept(tmp_path / "cache")
    assert cache.get(NAME, len(data)) == data
    content, name = path.read_bytes(), NAME
    if change == "renamed":
        name = NAME.replace("ab", "cd", 1)
        path.rename(path.with_name(name))
    elif change == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {
            "zeros": content[:4100] + bytes(len(content) - 4100),
            "shorter": content[:-1],
            "longer": content + b"x",
            "empty": b"",
        }
        path.write_bytes(changed[change])
    assert cache.get(name, len(data)) is None
    if change != "folder":
        cache.put(name, data)
        assert cache.get(name, len(data)) == data


def test_an_image_may_be_empty(cache):
    cache.put(NAME, b"")
    assert cache.get(NAME, 10) == b"" and cache.get(NAME.replace("ab", "cd"), 10) is None


def test_the_size_is_limited(tmp_path):
    limit = 64 * 10 * 4096  # ten blocks in each folder
    cache = Cache(str(tmp_path / "cache"), limit)
    rng = np.random.default_rng(0)
    for number in range(3000):
        cache.put(f"01234567-{rng.bytes(16).hex()}", bytes(100 + number))
    sizes = sum(path.stat().st_blocks * 512 for path in kept(tmp_path / "cache"))
    assert 0.8 * limit < sizes <= limit


def test_what_does_not_fit_is_not_kept_and_the_first_images_stay(tmp_path):
    cache = Cache(str(tmp_path / "cache"), 64 * 4 * 4096)
    for name in names(9):
        cache.put(name, bytes(4000))
    found = [cache.get(name, 4000) is not None for name in names(9)]
    assert found == [True] * 4 + [False] * 5
    cache.put(NAME, bytes(5 * 4096))
    assert cache.get(NAME, 5 * 4096) is None


def test_images_of_other_data_make_room_after_an_hour(tmp_path):
    root = tmp_path / "cache"
    before = Cache(str(root), 64 * 4 * 4096)
    for name, hours in zip(names(4), (3, 2, 4, 0), strict=True):
        before.put(name, bytes(4000))
        path = root / "00" / name
        os.utime(path, (path.stat().st_mtime - 3600 * hours,) * 2)
    (root / "00/notes of mine").write_bytes(b"")
    os.utime(root / "00/notes of mine", (1, 1))
    now = Cache(str(root), 64 * 4 * 4096)
    now.own.add("89abcdef")
    [new] = names(1, "89abcdef")
    now.put(new, bytes(4000))
    found = [now.get(name, 4000) is not None for name in (*names(4), new)]
    assert found == [False, True, False, True, True]  # the oldest ones went
    assert (root / "00/notes of mine").exists()


def test_own_images_stay_for_a_week(tmp_path):
    root = tmp_path / "cache"
    for days in (6, 8):
        cache = Cache(str(root), 64 * 4 * 4096)
        cache.own.add("01234567")
        for name in names(9):
            cache.put(name, bytes(4000))
        for path in kept(root):
            os.utime(path, (path.stat().st_mtime - 24 * 3600 * days,) * 2)
        again = Cache(str(root), 64 * 4 * 4096)
        again.own.add("01234567")
        again.put(names(9)[8], bytes(4000))
        assert (again.get(names(9)[8], 4000) is not None) == (days == 8)


def test_what_a_killed_process_left_is_removed(tmp_path):
    root = tmp_path / "cache"
    cache = Cache(str(root), 64 * 2 * 4096)
    cache.own.add("01234567")
    first, second = names(2)
    cache.put(first, bytes(4000))
    left = root / "00" / f"{second}.{'0' * 16}"
    left.write_bytes(bytes(4000))
    os.utime(left, (1, 1))
    cache = Cache(str(root), 64 * 2 * 4096)
    cache.put(second, bytes(4000))
    assert cache.get(second, 4000) is not None and not left.exists()


def test_a_use_is_recorded(cache, tmp_path):
    cache.put(NAME, b"x")
    [path] = kept(tmp_path / "cache")
    os.utime(path, (1, 1))
    assert cache.get(NAME, 1) == b"x" and path.stat().st_mtime > 1e9


def test_a_use_that_can_not_be_recorded_is_a_use(cache, tmp_path, monkeypatch):
    cache.put(NAME, b"x")
    [path] = kept(tmp_path / "cache")
    os.utime(path, (1, 1))

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(image_cache.os, "utime", refuse)
    assert cache.get(NAME, 1) == b"x"


def test_a_disk_that_is_full_is_no_error(bucket, folder, monkeypatch, caplog):
    write_tar(bucket / "x.tar", [f"a/{i}.jpg" for i in range(9)])
    monkeypatch.setattr(image_cache, "_FREE", 1 << 60)
    train = open_images("s3://b/x.tar", cache_gigabytes=1).train
    assert [train.read(i) for i in range(9)] == [b"a/%d.jpg" % i for i in range(9)]
    [record] = caplog.records
    assert "images can't be kept in" in record.getMessage() and not kept()


def test_a_folder_that_can_not_be_written_is_no_error(bucket, folder, caplog):
    write_tar(bucket / "x.tar", ["a/1.jpg"])
    pathlib.Path(cache_folder()).mkdir(parents=True)
    pathlib.Path(cache_folder(), "images").write_bytes(b"mine")
    train = open_images("s3://b/x.tar", cache_gigabytes=1).train
    assert train.read(0) == train.read(0) == b"a/1.jpg" and len(caplog.records) == 1
    assert pathlib.Path(cache_folder(), "images").read_bytes() == b"mine"


def test_a_cache_that_somebody_removes_is_made_again(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_PAUSE", 0.0)
    cache.put(NAME, b"x")
    shutil.rmtree(tmp_path / "cache")
    assert cache.get(NAME, 1) is None
    cache.put(NAME, b"x")  # finds it
    cache.put(NAME, b"x")
    assert cache.get(NAME, 1) == b"x"


def work(root, seed):
    """Reads and writes as a process of a run does; fails on wrong bytes."""
    cache, rng = Cache(root, 64 * 40 * 4096), np.random.default_rng(seed)
    for number in rng.integers(0, 300, 2000):
        name = f"01234567-{number:028x}{number:04x}"
        data = bytes([number % 251]) * (1000 + int(number))
        found = cache.get(name, len(data))
        assert found in (None, data)
        if found is None:
            cache.put(name, data)


def test_threads_and_processes_share_it(tmp_path):
    root = str(tmp_path / "cache")
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=work, args=(root, 0))
    other.start()
    failed = []

    def attempt(seed):
        try:
            work(root, seed)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=attempt, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in [*threads, other]:
        thread.join()
    assert not failed and other.exitcode == 0 and len(kept(root)) == 300
