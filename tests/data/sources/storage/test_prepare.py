"""`prepare --from` reads a bucket."""

import pytest

from moco_jax.data.sources.source import fingerprint
from tests.buckets.server import serving, settings
from tests.data.sources.storage.test_sources import write_all
from tests.data.sources.stores import open_images
from tests.data.test_prepare_shards import to_shards

pytest.importorskip("obstore")


@pytest.fixture
def server(bucket, monkeypatch):
    write_all(bucket)
    files = [path for path in bucket.rglob("*") if path.is_file()]
    content = {str(path.relative_to(bucket)): path.read_bytes() for path in files}
    with serving({"b": content}) as made:
        for key, value in settings(made.url).items():
            monkeypatch.setenv(key, value)
        yield made


@pytest.mark.parametrize("path", ["x.tar", "x.zip", "folder", "shards", "plain", "list.csv"])
def test_shards_of_a_bucket_are_those_of_a_disk(bucket, server, tmp_path, path):
    assert to_shards(f"s3://b/{path}", tmp_path / "out", "--images_per_shard=2") == 0
    expected, found = open_images(bucket / path), open_images(tmp_path / "out")
    for a, b in ((expected.train, found.train), (expected.test, found.test)):
        assert (a is None) == (b is None)
        if a and b:
            assert fingerprint(a) == fingerprint(b)
            assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]


def test_an_interrupted_conversion_continues(bucket, server, tmp_path, capsys):
    train = len(open_images(bucket / "x.tar").train)
    arguments = ("s3://b/x.tar", tmp_path / "out", "--images_per_shard=1")
    assert to_shards(*arguments) == 0
    last = sorted((tmp_path / "out").glob("train*.tar"))[-1]
    before = last.read_bytes()
    last.unlink()
    assert to_shards(*arguments) == 0 and last.read_bytes() == before
    assert len(list((tmp_path / "out").glob("train*.tar"))) == train


@pytest.mark.parametrize(
    "source, refuses, message",
    [
        ("s3://b/x.tar", True, "permission denied for s3://b/x.tar"),
        ("s3://absent/x.tar", False, "there is no bucket s3://absent: correct --from"),
        ("s3://b/y.tar", False, "there is no object and no folder s3://b/y.tar: correct --from"),
    ],
)
def test_errors_name_the_flag(server, tmp_path, capsys, source, refuses, message):
    server.refuses = refuses
    assert to_shards(source, tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shards_are_written_to_a_disk(bucket, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all(bucket)
    assert to_shards(bucket / "x.tar", "s3://b/out") == 2
    assert "--out=s3://b/out must be a folder on a disk" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()
