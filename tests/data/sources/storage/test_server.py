"""obstore against a server on this machine, as S3 and as Google Cloud Storage."""

import threading
import time

import pytest

from moco_jax.buckets import objects
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.storage.test_sources import PATHS, described, inside, write_all
from tests.data.sources.stores import open_images, write_tar

pytest.importorskip("obstore")


def load(server, bucket):
    files = [path for path in bucket.rglob("*") if path.is_file()]
    server.buckets["b"] = {str(path.relative_to(bucket)): path.read_bytes() for path in files}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_all_formats(bucket, server, scheme):
    write_all(bucket)
    load(server, bucket)
    for path in PATHS:
        found = described(open_images(f"{scheme}://b/{path}"))
        expected = inside(described(open_images(bucket / path)), str(bucket))
        assert inside(found, f"{scheme}://b") == expected, path


@pytest.mark.parametrize("name", ["a +%20b.tar", "ä.tar", "a&b=c;d.tar", "~#?.tar"])
def test_odd_keys(bucket, server, name):
    write_tar(bucket / name, ["a/1.jpg"])
    load(server, bucket)
    start = name.partition("+")[0]
    assert open_images(f"gs://b/{start}*").train.read(0) == b"a/1.jpg"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_is_wrong_is_said(bucket, server, scheme):
    write_shard(bucket / "x.tar", samples(["1a"]))
    load(server, bucket)
    for path in ("x.tar", "folder", "a-{0..3}.tar", "*.tar", "l.csv", "x.zip"):
        with pytest.raises(objects.BucketError, match=f"there is no bucket {scheme}://absent"):
            open_images(f"{scheme}://absent/{path}")
    with pytest.raises(FileNotFoundError, match=f"no object and no folder {scheme}://b/y.tar"):
        open_images(f"{scheme}://b/y.tar")
    server.refuses = True
    for path in ("x.tar", "a-{0..3}.tar", "*.tar"):
        with pytest.raises(objects.BucketError, match=f"permission denied for {scheme}://b"):
            open_images(f"{scheme}://b/{path}")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_replaced_object_is_named(bucket, server, scheme):
    write_shard(bucket / "s/x.tar", samples(["1a", "2b"]))
    load(server, bucket)
    train = open_images(f"{scheme}://b/s").train
    write_shard(bucket / "s/x.tar", samples(["1c", "2d"]))
    load(server, bucket)
    with pytest.raises(OSError, match=f"{scheme}://b/s/x.tar: it was changed or replaced after"):
        train.read(0)


def test_a_server_that_is_stopped_and_started(bucket, server, caplog, monkeypatch):
    write_tar(bucket / "x.tar", ["a/1.jpg", "b/2.jpg"])
    load(server, bucket)
    monkeypatch.setattr(objects, "_SILENT", 0.1)
    train = open_images("s3://b/x.tar").train
    server.stop()
    waits = lambda: any("does not answer" in x.getMessage() for x in list(caplog.records))  # noqa: E731

    def start_again():
        while not waits() and thread.is_alive():
            time.sleep(0.02)
        server.start()

    found = []
    thread = threading.Thread(target=lambda: found.append(train.read(1)))
    thread.start()
    start_again()
    thread.join()
    assert found == [b"b/2.jpg"]
    first, last = (record.getMessage() for record in caplog.records if record.name == "moco_jax")
    assert "s3://b does not answer (HTTP error" in first and "s3://b answers again" in last
