"""Writes through obstore, to a server of S3 and one of Google Cloud Storage."""

import pytest

from moco_jax.buckets import objects
from moco_jax.buckets.client import Kind, Over

pytest.importorskip("obstore")


@pytest.fixture(params=["s3", "gs"])
def url(request, server):
    return f"{request.param}://b/runs/x"


def test_a_write_on_a_condition(url, server):
    first = objects.write(url, b"1", Over.NOTHING)
    with pytest.raises(objects.Changed):
        objects.write(url, b"2", Over.NOTHING)
    second = objects.write(url, b"22", first)
    with pytest.raises(objects.Changed):
        objects.write(url, b"333", first)
    objects.write(url, b"4444", objects.stat(url))
    with pytest.raises(objects.Changed):
        objects.write(url, b"5", second)
    assert server.buckets["b"] == {"runs/x": b"4444"}


def test_versions_are_those_of_a_list(url, tmp_path, server):
    (tmp_path / "x").write_bytes(b"x" * (20 << 20))
    for data in (b"1", tmp_path / "x"):
        wrote = objects.write(url, data)
        (listed,) = objects.below(url.removesuffix("/x"))
        assert listed.version and listed[:3] == wrote[:3] == objects.stat(url)[:3]
    assert server.buckets["b"]["runs/x"] == b"x" * (20 << 20)
    assert any("uploadId" in request for request in server.requests)
    objects.remove(url)
    objects.remove(url)
    assert not server.buckets["b"]


def test_a_server_without_conditions_says_so(url, server):
    server.conditional = False
    with pytest.raises(objects.BucketError) as error:
        objects.write(url, b"1", Over.NOTHING)
    assert error.value.kind == Kind.UNCONDITIONAL


def test_errors_of_writes(url, server):
    root = url.removesuffix("/runs/x")
    server.read_only = True
    with pytest.raises(objects.BucketError, match=f"permission denied for {url} .*write and del"):
        objects.write(url, b"1")
    server.read_only = False
    with pytest.raises(objects.BucketError, match=f"no bucket {root}absent: correct --config"):
        objects.write(url.replace("//b", "//babsent"), b"1")
