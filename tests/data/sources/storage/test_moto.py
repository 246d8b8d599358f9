"""obstore against moto, whose S3 is more complete than the server of these tests."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from moco_jax.buckets import objects
from moco_jax.buckets.client import Over
from moco_jax.buckets.lock import Lock
from tests.buckets.server import settings
from tests.data.sources.storage.test_sources import PATHS, described, inside, write_all
from tests.data.sources.stores import open_images

obstore = pytest.importorskip("obstore")
pytest.importorskip("moto.server", exc_type=ImportError)


@pytest.fixture
def moto(monkeypatch):
    """Serves S3 with the bucket bucket."""
    code = (
        "from moto.moto_server.threaded_moto_server import ThreadedMotoServer as S\n"
        "import sys\ns = S('127.0.0.1', 0, verbose=False)\ns.start()\n"
        "print(s.get_host_and_port()[1], flush=True)\nsys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as server:
        assert server.stdout and server.stdin
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for key, value in settings(url).items():
            monkeypatch.setenv(key, value)
        signature = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4"}
        made = urllib.request.Request(f"{url}/bucket", method="PUT", headers=signature)
        urllib.request.urlopen(made).close()
        yield obstore.store.from_url("s3://bucket", client_options={"allow_http": True})
        server.stdin.close()
        server.send_signal(signal.SIGKILL)


def test_all_formats(bucket, moto):
    write_all(bucket)
    for path in filter(os.path.isfile, bucket.rglob("*")):
        obstore.put(moto, os.fspath(path.relative_to(bucket)), path.read_bytes())
    for path in PATHS:
        found = described(open_images(f"s3://bucket/{path}"))
        assert inside(found, "s3://bucket") == inside(
            described(open_images(bucket / path)), str(bucket)
        ), path
    with pytest.raises(objects.BucketError, match="there is no bucket s3://absent"):
        open_images("s3://absent/x.tar")
    with pytest.raises(FileNotFoundError, match="no object and no folder s3://bucket/y.tar"):
        open_images("s3://bucket/y.tar")
    train = open_images("s3://bucket/shards").train
    obstore.put(moto, "shards/set-000.tar", bytes(1 << 20))
    with pytest.raises(OSError, match="set-000.tar: it was changed or replaced after it was liste"):
        train.read(0)


def test_a_listing_of_several_pages(bucket, moto):
    for number in range(1200):
        obstore.put(moto, f"many/{number % 3}/{number}.jpg", b"x")
    assert len(open_images("s3://bucket/many").train) == 1200


def test_writes_on_a_condition_and_a_lock(moto, tmp_path):
    url = "s3://bucket/runs/x"
    first = objects.write(url, b"1", Over.NOTHING)
    for over in (Over.NOTHING, first._replace(version='"other"')):
        with pytest.raises(objects.Changed):
            objects.write(url, b"2", over)
    (tmp_path / "x").write_bytes(b"x" * (20 << 20))
    objects.write(url, b"22", first)
    entry = objects.write(url, tmp_path / "x")
    assert [found[:3] for found in objects.below("s3://bucket/runs")] == [entry[:3]]
    objects.remove(url)
    lock = Lock(f"{url}/.lock")
    lock.acquire()
    assert lock.renew(after=0.0)
    lock.release()
    assert objects.below("s3://bucket/runs") == []
