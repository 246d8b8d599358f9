"""An index lists a shard once; a damaged or outdated one is never used and written again."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from moco_jax.data.sources.shards import index_file
from moco_jax.data.sources.shards.index_file import open_shard
from moco_jax.data.sources.storage.files import open_file
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.stores import contents, open_images


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a-0.tar", samples(["0a", "1b"]))


@pytest.fixture
def listings(monkeypatch):
    """The shards that were listed."""
    found, plain = [], index_file.list_samples

    def count(path):
        found.append(os.path.basename(path))
        return plain(path)

    monkeypatch.setattr(index_file, "list_samples", count)
    return found


def index_of(shard):
    return shard.with_name(shard.name + index_file.ENDING)


def test_shard_is_listed_once(shard, listings):
    first, second = open_shard(str(shard)).samples, open_shard(str(shard)).samples
    assert listings == ["a-0.tar"] and index_of(shard).exists()
    for name in ("offsets", "sizes", "text", "lengths"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.labels[".cls"].table() == second.labels[".cls"].table() == ["0", "1"]
    assert contents(open_images(shard.parent).train) == ["0a", "1b"]
    assert sorted(os.listdir(shard.parent)) == ["a-0.tar", "a-0.tar.moco-index"]  # no other file


@pytest.mark.parametrize("keeps", ["size", "time"])
def test_replaced_shard_is_listed_again(shard, listings, keeps):
    status = shard.stat()
    open_shard(str(shard))
    write_shard(shard, samples(["0x", "1y"]))
    if keeps == "time":
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents(open_images(shard.parent).train) == ["0x", "1y"]
    assert len(listings) == 2


def test_folder_that_can_not_be_written(shard, listings, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    plain = open

    def read_only(path, mode="r", *args, **kwargs):
        if "x" in mode and os.path.dirname(path) == str(shard.parent):
            raise PermissionError(13, "Permission denied", path)
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", read_only)  # root can write everywhere
    for _ in range(2):
        assert open_shard(str(shard)).saved
    assert len(listings) == 1 and len(list((cache / "moco_jax").iterdir())) == 1
    assert not index_of(shard).exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shard))  # a file
    assert not open_shard(str(shard)).saved
    assert "the index of 1 shards can't be written" in "\n".join(open_images(shard.parent).notes)


def test_file_of_that_name_is_kept(shard, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    index_of(shard).write_bytes(b"of the user")
    assert open_shard(str(shard)).saved
    assert index_of(shard).read_bytes() == b"of the user"


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 5000), marks=pytest.mark.slow)]
)
def test_damaged_index_is_written_again(shard, listings, seeds):
    open_shard(str(shard))
    whole = index_of(shard).read_bytes()
    for seed in seeds:
        rng = random.Random(seed)
        data = bytearray(whole)
        at = rng.randrange(16, len(data))
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        else:
            del data[at : at + rng.randrange(1, 50)]
        index_of(shard).write_bytes(data)
        count = len(listings)
        assert len(open_shard(str(shard)).samples) == 2 and len(listings) == count + 1
        assert index_of(shard).read_bytes() == whole


@pytest.mark.parametrize("name", ["offsets", "sizes", "lengths", "text", "codes"])
@pytest.mark.parametrize("how", ["short", "long", "large", "negative"])
def test_index_of_a_liar_is_not_used(shard, name, how):
    """A whole index with a right digest, whose arrays do not fit."""
    found = open_shard(str(shard)).samples
    bound = index_file._identity(open_file(str(shard)))
    holder = found.labels[".cls"] if name == "codes" else found
    array = getattr(holder, name)
    if how == "negative":
        wrong = array.astype(np.int64) - (1 << 31)
    elif how == "large":
        wrong = array.astype(np.int64) + (1 << 30)
    else:
        wrong = array[:-1] if how == "short" else np.concatenate([array, array])
    if name == "text" and len(wrong) == len(array):
        pytest.skip("names may be any bytes")
    changed = dict(vars(found))
    if name == "codes":
        labels = index_file.Labels(wrong, holder.text, holder.lengths)
        changed["labels"] = {".cls": labels}
    else:
        changed[name] = wrong
    data = index_file.encoded(index_file.Samples(**changed), bound)
    with pytest.raises(index_file._Invalid):
        index_file.decoded(data, bound)


_BUILD = """
import sys
from moco_jax.data.sources.shards import patterns
from moco_jax.data.sources.shards.index_file import open_shard
for path in patterns.in_folder(sys.argv[1]):
    assert len(open_shard(path).samples) == 50
"""


def test_two_processes_build_at_once(repository, tmp_path):
    for number in range(20):
        write_shard(tmp_path / f"a-{number:02}.tar", samples([f"{i}" for i in range(50)]))
    command = [sys.executable, "-c", _BUILD, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=repository) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 40 and names[1::2] == [f"a-{n:02}.tar.moco-index" for n in range(20)]
    listed = [open_shard(path).saved for path in map(str, sorted(tmp_path.glob("*.tar")))]
    assert listed == [True] * 20
