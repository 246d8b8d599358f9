"""obstore against a server on this machine, as S3 and as Google Cloud Storage."""

import threading
import time

import pytest

from moco_jax.data.sources.storage import buckets
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.storage.server import serving, settings
from tests.data.sources.storage.test_sources import PATHS, described, inside, write_all
from tests.data.sources.stores import open_images, write_tar

pytest.importorskip("obstore")


@pytest.fixture
def server(objects, monkeypatch):
    """Serves the objects, read when it starts, in the bucket b."""
    with serving({"b": {}}) as made:
        for key, value in settings(made.url).items():
            monkeypatch.setenv(key, value)
        yield made


def load(server, objects):
    files = [path for path in objects.rglob("*") if path.is_file()]
    server.buckets["b"] = {str(path.relative_to(objects)): path.read_bytes() for path in files}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_all_formats(objects, server, scheme):
    write_all(objects)
    load(server, objects)
    for path in PATHS:
        found = described(open_images(f"{scheme}://b/{path}"))
        expected = inside(described(open_images(objects / path)), str(objects))
        assert inside(found, f"{scheme}://b") == expected, path


@pytest.mark.parametrize("name", ["a +%20b.tar", "ä.tar", "a&b=c;d.tar", "~#?.tar"])
def test_odd_keys(objects, server, name):
    write_tar(objects / name, ["a/1.jpg"])
    load(server, objects)
    start = name.partition("+")[0]
    assert open_images(f"gs://b/{start}*").train.read(0) == b"a/1.jpg"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_is_wrong_is_said(objects, server, scheme):
    write_shard(objects / "x.tar", samples(["1a"]))
    load(server, objects)
    for path in ("x.tar", "folder", "a-{0..3}.tar", "*.tar", "l.csv", "x.zip"):
        with pytest.raises(buckets.BucketError, match=f"there is no bucket {scheme}://absent"):
            open_images(f"{scheme}://absent/{path}")
    with pytest.raises(FileNotFoundError, match=f"no object and no folder {scheme}://b/y.tar"):
        open_images(f"{scheme}://b/y.tar")
    server.refuses = True
    for path in ("x.tar", "a-{0..3}.tar", "*.tar"):
        with pytest.raises(buckets.BucketError, match=f"permission denied for {scheme}://b"):
            open_images(f"{scheme}://b/{path}")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_replaced_object_is_named(objects, server, scheme):
    write_shard(objects / "s/x.tar", samples(["1a", "2b"]))
    load(server, objects)
    train = open_images(f"{scheme}://b/s").train
    write_shard(objects / "s/x.tar", samples(["1c", "2d"]))
    load(server, objects)
    with pytest.raises(OSError, match=f"{scheme}://b/s/x.tar: it was changed or replaced after"):
        train.read(0)


def test_a_server_that_is_stopped_and_started(objects, server, caplog, monkeypatch):
    write_tar(objects / "x.tar", ["a/1.jpg", "b/2.jpg"])
    load(server, objects)
    monkeypatch.setattr(buckets, "_SILENT", 0.1)
    train = open_images("s3://b/x.tar").train
    server.stop()
    timer = threading.Timer(1.0, server.start)
    timer.start()
    begun = time.monotonic()
    assert train.read(1) == b"b/2.jpg" and time.monotonic() - begun > 0.5
    timer.join()
    first, last = (record.getMessage() for record in caplog.records if record.name == "moco_jax")
    assert "s3://b does not answer (HTTP error" in first and "s3://b answers again" in last
