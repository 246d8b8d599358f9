"""A data set in a bucket is the data set on the disk."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from moco_jax.buckets import objects
from moco_jax.data.loading import loader
from moco_jax.data.sources.shards import index_file
from moco_jax.data.sources.source import fingerprint
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.stores import SPLIT_PATHS, open_images, write_folder, write_tar
from tests.data.sources.tables import layouts


def write_all(root):
    """Writes a data set in each format that can be read in a bucket."""
    write_tar(root / "x.tar", SPLIT_PATHS)
    write_tar(root / "x.tar.gz", SPLIT_PATHS, "gz")
    with zipfile.ZipFile(root / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SPLIT_PATHS:
            archive.writestr(name, name)
    write_folder(root / "folder", SPLIT_PATHS)
    for number, keys in enumerate((["1a", "2b"], ["2c", "1d"])):
        write_shard(root / f"shards/set-00{number}.tar", samples(keys))
    found = layouts.items()
    layouts.folder(root, found)
    layouts.parquet(root / "plain", found, compression="none", use_dictionary=False)
    layouts.parquet(root / "packed", found)
    shutil.copy(next((root / "plain/data").glob("train*")), root / "x.parquet")
    rows = "".join(f"folder/{path},{path.split('/')[1]}\n" for path in SPLIT_PATHS)
    (root / "list.csv").write_text(f"path,label\n{rows}")


PATHS = [
    "x.tar", "x.tar.gz", "x.zip", "folder", "folder/", "shards", "shards/set-{000..001}.tar",
    "shards/*.tar", "shar*/set-*.tar", "plain", "packed", "x.parquet",
    "list.csv",
]  # fmt: skip


def described(opened):
    return [
        (list(source.names), source.class_names, list(source.labels), fingerprint(source))
        + ([source.read(index) for index in range(len(source))],)
        for source in (opened.train, opened.test)
        if source
    ]


def inside(found, start):
    """Returns descriptions whose names begin where the objects do."""
    cut = lambda name: name.removeprefix(start).lstrip("/").removeprefix("folder/")  # noqa: E731
    return [([cut(name) for name in names], *rest) for names, *rest in found]


@pytest.mark.parametrize("path", PATHS)
def test_images_names_and_labels_are_those_of_the_disk(bucket, folder, path):
    write_all(bucket)
    local, remote = open_images(bucket / path), open_images(f"s3://b/{path}")
    assert inside(described(remote), "s3://b") == inside(described(local), str(bucket))
    assert remote.train.remote and not local.train.remote


def test_lists_on_a_disk_may_name_objects(bucket, folder, tmp_path):
    write_folder(bucket, ["a/1.jpg"])
    write_folder(tmp_path, ["own/2.jpg"])
    (tmp_path / "list.csv").write_text("path,label\ns3://b/a/1.jpg,a\nown/2.jpg,b\n")
    train = open_images(tmp_path / "list.csv").train
    assert [train.read(0), train.read(1)] == [b"a/1.jpg", b"own/2.jpg"] and train.remote
    assert train.names[0] == "s3://b/a/1.jpg"


def test_buckets_and_disks_are_joined(bucket, folder, tmp_path):
    write_tar(bucket / "x.tar", ["a/1.jpg", "b/2.jpg"])
    write_folder(tmp_path / "own", ["b/3.jpg", "c/4.jpg"])
    train = open_images(f"{tmp_path / 'own'}+gs://b/x.tar").train
    assert train.class_names == ("b", "c", "a") and train.remote
    assert [train.read(i) for i in range(4)] == [b"b/3.jpg", b"c/4.jpg", b"a/1.jpg", b"b/2.jpg"]


def test_held_out_images_are_remote_too(bucket, folder):
    write_tar(bucket / "x.tar", [f"{i % 2}/{i}.jpg" for i in range(9)])
    opened = open_images("s3://b/x.tar", held_out=0.3)
    assert opened.train.remote and opened.test and opened.test.remote


def test_the_index_of_a_shard_is_kept(bucket, folder):
    write_shard(bucket / "s/a-0.tar", samples(["1a", "2b"]))
    first = described(open_images("s3://b/s"))
    folder.requests.clear()
    assert described(open_images("s3://b/s")) == first
    listing = [("stat", "s"), ("names", "s"), ("whole", "s/shards.json"), ("stat", "s/a-0.tar")]
    ends, images = 2 * [("read", "s/a-0.tar")], 4 * [("read", "s/a-0.tar")]
    assert folder.requests == listing + ends + images  # two reads of each for the fingerprint


def test_a_replaced_shard_is_listed_again(bucket, folder):
    write_shard(bucket / "s/a-0.tar", samples(["1a", "2b"]))
    open_images("s3://b/s")
    write_shard(bucket / "s/a-0.tar", samples(["1c", "2d"]))
    os.utime(bucket / "s/a-0.tar", ns=(1, 1))
    train = open_images("s3://b/s").train
    assert [train.read(0), train.read(1)] == [b"1c", b"2d"]


def test_an_index_that_is_copied_with_its_shard_is_read(bucket, folder, tmp_path, monkeypatch):
    write_shard(tmp_path / "s/a-0.tar", samples(["1a", "2b"]))
    open_images(tmp_path / "s")
    shutil.copytree(tmp_path / "s", bucket / "s", copy_function=shutil.copyfile)
    monkeypatch.setattr(index_file, "list_samples", lambda path: pytest.fail("it is listed"))
    assert len(open_images("s3://b/s").train) == 2
    (bucket / "s/a-0.tar").write_bytes((bucket / "s/a-0.tar").read_bytes() + bytes(512))
    with pytest.raises(pytest.fail.Exception):
        open_images("s3://b/s")


def test_a_shard_that_is_replaced_during_a_run_is_named(bucket, folder):
    write_shard(bucket / "s/a-0.tar", samples(["1a", "2b"]))
    train = open_images("s3://b/s").train
    write_shard(bucket / "s/a-0.tar", samples(["1c", "2d", "1e"]))
    with pytest.raises(OSError, match="can't read s3://b/s/a-0.tar: it was changed or replaced af"):
        train.read(0)


def test_one_request_for_each_image(bucket, folder):
    write_all(bucket)
    for path in ("x.tar", "x.zip", "folder", "shards", "plain", "list.csv"):
        train = open_images(f"s3://b/{path}").train
        train.read(0)  # finds the images of a row group
        folder.requests.clear()
        train.read(1)
        assert len(folder.requests) == 1, path


@pytest.mark.parametrize(
    "path, message",
    [
        ("s3://b/absent", "there is no object and no folder s3://b/absent: correct --config.data"),
        (
            "s3://b/s/a-{0..2}.tar",
            "1 shard of the 3 of s3://b/s/a-{0..2}.tar is missing: s3://b/s/",
        ),
        ("s3://b/s/b-*.tar", "no file is named s3://b/s/b-[*].tar"),
        ("s3://", "--config.data.path=s3:// names no bucket; allowed: s3://bucket/x"),
        ("s3://{a,b}/x.tar", "s3://a/x.tar must name one bucket"),
        ("s3://b/x.npz", "s3://b/x.npz can't be read in a bucket: copy it to a disk"),
        ("s3://b/s/text.md", "can't open the file s3://b/s/text.md"),
    ],
)
def test_wrong_urls(bucket, folder, path, message):
    for number in (0, 1):
        write_shard(bucket / f"s/a-{number}.tar", samples(["1a"]))
    (bucket / "s/text.md").write_text("x")
    with pytest.raises((ValueError, OSError), match=message.replace("{", "[{]")):
        open_images(path)


def test_an_absent_object_of_a_list_is_an_unreadable_image(bucket, folder):
    (bucket / "list.txt").write_text("1.jpg\n2.jpg\n")
    with pytest.raises(FileNotFoundError, match="there is no object s3://b/2.jpg"):
        open_images("s3://b/list.txt").train.read(1)


def test_many_threads_wait_for_a_bucket(monkeypatch):
    monkeypatch.setattr(loader, "cores", lambda: 2)
    config = loader.ConfigDict({"threads": 0})
    assert loader.threads(config) == 2 and loader.threads(config, remote=True) == 64
    assert loader.threads(loader.ConfigDict({"threads": 5}), remote=True) == 5


def test_streams_are_those_of_files(bucket, folder):
    from moco_jax.data.sources.storage.files import open_file, stream

    data = np.random.default_rng(0).bytes(3 << 20)
    (bucket / "x").write_bytes(data)
    with stream(open_file("s3://b/x")) as remote, open(bucket / "x", "rb") as local:
        rng = np.random.default_rng(1)
        for offset, size in rng.integers(0, 4 << 20, (200, 2)):
            assert remote.seek(offset) == local.seek(offset)
            assert remote.read(size) == local.read(size) and remote.tell() == local.tell()
        assert remote.seek(-5, os.SEEK_END) == len(data) - 5 and remote.read() == data[-5:]
    assert objects.read("s3://b/x", objects.stat("s3://b/x"), len(data), 9) == b""
