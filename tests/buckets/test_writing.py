"""Objects written and removed, on a condition or without."""

import pytest

from moco_jax.buckets import objects
from moco_jax.buckets.client import Kind, Over

URL = "s3://b/runs/x"


def test_what_is_written_can_be_read(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    entry = objects.write(URL, b"bytes")
    assert objects.read_whole(URL, 99) == (5, b"bytes") and entry == objects.stat(URL)
    objects.write(URL, tmp_path / "file")
    assert objects.read_whole(URL, 99) == (11, b"from a file")


def test_a_write_over_nothing_needs_nothing(folder):
    objects.write(URL, b"1", Over.NOTHING)
    with pytest.raises(objects.Changed):
        objects.write(URL, b"2", Over.NOTHING)
    assert objects.read_whole(URL, 99) == (1, b"1")


def test_a_write_over_a_version_needs_this_version(folder):
    first = objects.write(URL, b"1")
    second = objects.write(URL, b"22", first)
    with pytest.raises(objects.Changed):
        objects.write(URL, b"3", first)
    objects.write(URL, b"4", second)
    assert objects.read_whole(URL, 99) == (1, b"4")


def test_a_removal_of_nothing_is_none(folder):
    objects.write(URL, b"1")
    objects.remove(URL)
    objects.remove(URL)
    assert objects.below("s3://b/runs") == []


def test_errors_of_a_write(folder):
    folder.problem = Kind.DENIED
    with pytest.raises(
        objects.BucketError, match="allow to list the bucket, and to read, write and"
    ):
        objects.write(URL, b"1")
    folder.problem = Kind.NO_BUCKET
    with (
        objects.given_by("--workdir"),
        pytest.raises(
            objects.BucketError, match="there is no bucket s3://b: correct --workdir"
        ) as e,
    ):
        objects.write(URL, b"1")
    assert e.value.kind == Kind.NO_BUCKET


def test_a_write_that_is_not_worth_waiting_for_ends(folder):
    folder.problem = Kind.PASSING
    with pytest.raises(objects.BucketError, match="s3://b does not answer") as error:
        objects.write(URL, b"1", wanted=lambda: False)
    assert error.value.kind == Kind.PASSING
