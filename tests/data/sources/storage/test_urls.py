"""Data sets behind other URLs: a plain server, and a store of fsspec."""

import functools
import http.server
import os
import threading

import pytest

from moco_jax.buckets import client, objects
from moco_jax.buckets.client import Entry
from tests.buckets.server import serving
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.storage.test_sources import PATHS, described, inside, write_all
from tests.data.sources.stores import open_images, write_tar

FILES = [path for path in PATHS if "." in path and "*" not in path]  # a server has no lists


@pytest.fixture
def server(bucket):
    """Serves the files of a folder at /d, read at the first request."""
    pytest.importorskip("obstore")
    with serving({"d": {}}) as made:
        yield made


def load(server, bucket):
    files = filter(os.path.isfile, bucket.rglob("*"))
    server.buckets["d"] = {str(path.relative_to(bucket)): path.read_bytes() for path in files}


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.mark.parametrize("path", FILES)
def test_a_plain_server(bucket, server, path):
    write_all(bucket)
    load(server, bucket)
    found = described(open_images(f"{server.url}/d/{path}"))
    expected = inside(described(open_images(bucket / path)), str(bucket))
    assert inside(found, f"{server.url}/d") == expected


@pytest.mark.parametrize("scheme", ["az", "abfs"])
def test_azure(bucket, server, scheme, monkeypatch):
    """Its lists are not emulated."""
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.url)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    write_all(bucket)
    load(server, bucket)
    for path in ("x.tar", "x.zip", "x.parquet"):
        found = described(open_images(f"{scheme}://d/{path}"))
        expected = inside(described(open_images(bucket / path)), str(bucket))
        assert inside(found, f"{scheme}://d") == expected


def test_a_store_of_fsspec(bucket, memory):
    write_all(bucket)
    for path in filter(os.path.isfile, bucket.rglob("*")):
        memory.pipe_file(f"/b/{path.relative_to(bucket)}", path.read_bytes())
    for path in PATHS:
        found = described(open_images(f"memory://b/{path}", cache_gigabytes=0.1))
        expected = inside(described(open_images(bucket / path)), str(bucket))
        assert inside(found, "memory://b") == expected, path


def test_a_replaced_file_is_named(bucket, server):
    write_shard(bucket / "x-0.tar", samples(["1a", "2b"]))
    load(server, bucket)
    train = open_images(f"{server.url}/d/x-{{0..0}}.tar").train
    write_shard(bucket / "x-0.tar", samples(["1c", "2d"]))
    load(server, bucket)
    with pytest.raises(OSError, match="x-0.tar: it was changed or replaced after"):
        train.read(0)


def test_what_a_plain_server_lacks_is_said(bucket, server):
    write_shard(bucket / "x-0.tar", samples(["1a"]))
    load(server, bucket)
    for path in ("folder", "absent.tar", "*.tar"):
        with pytest.raises(
            objects.BucketError, match="can't list a folder: --config.data.path mus"
        ):
            open_images(f"{server.url}/d/{path}")
    with pytest.raises(FileNotFoundError, match="1 shard of the 2 of .* is missing: .*x-1.tar"):
        open_images(f"{server.url}/d/x-{{0..1}}.tar")
    server.refuses = True
    with pytest.raises(objects.BucketError, match="permission denied for http://127.0.0.1"):
        open_images(f"{server.url}/d/x-0.tar")


def test_escaped_urls(bucket, server):
    write_tar(bucket / "a b%.tar", ["a/1.jpg"])
    load(server, bucket)
    assert open_images(f"{server.url}/d/a%20b%25.tar").train.read(0) == b"a/1.jpg"


def test_a_server_without_ranges(bucket):
    pytest.importorskip("obstore")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def copyfile(self, source, outputfile):
            outputfile.write(b"")  # the client closes the connection

    write_tar(bucket / "x.tar", ["a/1.jpg"])
    handler = functools.partial(Quiet, directory=bucket)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        with pytest.raises(objects.BucketError, match="Range request not supported"):
            open_images(f"http://127.0.0.1:{made.server_port}/x.tar")
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "found, version",
    [
        ({"e_tag": '"1"'}, '"1"'),
        ({"version": "7"}, "7"),
        ({"e_tag": 'W/"1"'}, "modified 2026-01-02T00:00:00+00:00"),
        ({}, "modified 2026-01-02T00:00:00+00:00"),
        ({"last_modified": None}, ""),
    ],
)
def test_versions(found, version):
    import datetime

    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    whole = {"path": "x", "size": 1, "e_tag": None, "version": None, "last_modified": day} | found
    entry: Entry = client._entry(whole)
    assert entry.version == version
    if version.startswith("modified"):
        assert client._time(version) == day
