"""Requests that fail: patience with a server that is gone, and errors in words."""

import re
import threading

import pytest

from moco_jax.buckets import client, objects
from moco_jax.buckets.client import Kind
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.loading.reader import Reader
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import Source, fingerprint
from tests.data.sources.storage.test_sources import write_all
from tests.data.sources.stores import open_images, write_tar


class Clock:
    """Time that passes only while someone sleeps; `then` is called with the seconds so far."""

    def __init__(self, then=lambda seconds: None):
        self.seconds, self._then = 1.0, then

    def monotonic(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds
        self._then(self.seconds)


@pytest.fixture
def tar(bucket, folder):
    write_tar(bucket / "x.tar", ["a/1.jpg", "b/2.jpg"])
    return "s3://b/x.tar"


@pytest.fixture
def clock(folder, monkeypatch):
    """The server is there again after 30 s."""

    def then(seconds):
        if seconds > 32:
            folder.problem = None

    made = Clock(then)
    monkeypatch.setattr(objects, "time", made)
    return made


def test_a_run_waits_for_a_server_that_is_gone(tar, folder, clock, caplog):
    train = open_images(tar).train
    folder.problem = Kind.PASSING
    assert train.read(0) == b"a/1.jpg" and 30 < clock.seconds < 60
    gone, back = [record.getMessage() for record in caplog.records]
    assert gone == ("s3://b does not answer (the words of the server); waiting for it up to 1800 s")
    assert re.fullmatch("s3://b answers again after [34]. s", back)


def test_all_threads_print_one_message(tar, folder, clock, caplog):
    train = open_images(tar).train
    folder.problem = Kind.PASSING
    threads = [threading.Thread(target=train.read, args=(0,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("does not answer" in record.getMessage() for record in caplog.records) == 1


def test_a_short_failure_prints_nothing(tar, folder, monkeypatch, caplog):
    train = open_images(tar).train

    def then(seconds):
        folder.problem = None

    monkeypatch.setattr(objects, "time", Clock(then))
    folder.problem = Kind.PASSING
    assert train.read(0) == b"a/1.jpg" and not caplog.records


def test_patience_has_an_end(tar, folder, monkeypatch):
    train, clock = open_images(tar).train, Clock()
    monkeypatch.setattr(objects, "time", clock)
    folder.problem = Kind.PASSING
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://right")
    with pytest.raises(objects.BucketError, match=r"s3://b did not answer for 18.. s \([^;]*$"):
        train.read(0)
    assert objects.PATIENCE < clock.seconds < objects.PATIENCE + 30


def test_a_server_that_never_answered_is_given_up_soon(tar, folder, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(objects, "time", clock)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://wrong")
    folder.problem = Kind.PASSING
    message = "s3://b did not answer for [23]. s .*; AWS_ENDPOINT_URL must be the URL of its server"
    with pytest.raises(objects.BucketError, match=message):
        open_images(tar)


def test_waiting_ends_when_it_is_not_wanted(tar, folder, monkeypatch):
    train, clock = open_images(tar).train, Clock()
    monkeypatch.setattr(objects, "time", clock)
    folder.problem = Kind.PASSING
    with (
        objects.waiting_while(lambda: clock.seconds < 40),
        pytest.raises(objects.BucketError, match="s3://b did not answer for [34]. s"),
    ):
        train.read(0)
    assert clock.seconds < 41


@pytest.mark.parametrize(
    "kind, message",
    [
        (Kind.DENIED, "permission denied for s3://b/x.tar .the words of the server.: the credenti"),
        (Kind.NO_CREDENTIALS, "no credentials for s3://b .*: set AWS_ACCESS_KEY_ID and AWS_SECRET"),
        (Kind.NO_BUCKET, "there is no bucket s3://b: correct --config.data.path"),
        (Kind.OTHER, "can't read s3://b/x.tar: the words of the server"),
    ],
)
def test_errors_of_the_bucket_end_a_run(tar, folder, kind, message):
    """They are not damaged images, which a run skips, nor other contents."""
    train = open_images(tar).train
    folder.problem = kind
    with pytest.raises(objects.BucketError, match=message):
        open_images(tar)
    with pytest.raises(objects.BucketError, match=message):
        Reader(train, Decoding(64), max_bad_fraction=1.0).read(0)
    with pytest.raises(objects.BucketError, match=message):
        fingerprint(train)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.parquet"])
def test_a_bucket_that_fails_is_no_damage(bucket, folder, name, monkeypatch):
    write_all(bucket)
    ask, asked = folder._ask, []

    def later(request, argument):
        asked.append(request)
        folder.problem = Kind.DENIED if len(asked) == 4 else None
        ask(request, argument)

    monkeypatch.setattr(folder, "_ask", later)
    with pytest.raises(objects.BucketError, match=f"permission denied for s3://b/{name}"):
        open_images(f"s3://b/{name}")


def test_no_credentials_of_google(folder):
    folder.problem = Kind.NO_CREDENTIALS
    with pytest.raises(objects.BucketError, match="gs://b .*set GOOGLE_APPLICATION_CREDENTIALS to"):
        open_images("gs://b/x")


def test_a_large_object_is_not_read(bucket, folder):
    (bucket / "x.jpg").write_bytes(bytes(100))
    with pytest.raises(OSError, match="can't read s3://b/x.jpg: it has 100 bytes; allowed: at mos"):
        read_file("s3://b/x.jpg", limit=99)
    assert read_file("s3://b/x.jpg", limit=100) == bytes(100)


def test_the_package_that_is_needed_is_named(monkeypatch):
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"s3://b needs obstore: pip install 'moco-jax\[bucket\]'"):
        open_images("s3://b/x.tar")


@pytest.mark.parametrize(
    "url, expected",
    [
        ("s3://b", ("s3://b", "")),
        ("gs://b/", ("gs://b", "")),
        ("s3://b/a/x.tar", ("s3://b", "a/x.tar")),
        ("s3://b/a//c/../x.tar", ("s3://b", "a/x.tar")),
        ("s3://b/../../x", ("s3://b", "x")),
    ],
)
def test_split(url, expected):
    assert objects.split(url) == expected


_RETRIED = "Error performing GET http://x/y in 1s, after 2 retries, max_retries: 2 - "


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hidden@host/x.tar", "=https://me:...@host/x.tar has a password"),
        ("sftp://me:hidden@host:22/x", "=sftp://me:...@host:22/x has a password"),
        ("https://h/x.tar?a=1&X-Amz-Signature=hidden", "=https://h/x.tar?... is a signed URL"),
        ("https://h/x.tar?sig=hidden", "=https://h/x.tar?... is a signed URL"),
    ],
)
def test_secrets_in_urls_are_errors_that_do_not_show_them(url, shown):
    with pytest.raises(objects.BucketError) as error:
        objects.stat(url)
    assert shown in str(error.value) and "hidden" not in str(error.value)


@pytest.mark.parametrize("url", ["s3://b/k:1@x", "abfs://c@account/x", "https://h:80/a?b=1@x"])
def test_other_urls_have_no_secrets(url):
    assert objects.split(url)


@pytest.mark.parametrize(
    "text, kind",
    [
        (_RETRIED + "HTTP error: error sending request", Kind.PASSING),
        (_RETRIED + "Server returned error status code: 503 Service Unavailable", Kind.PASSING),
        (_RETRIED + "Server returned non-2xx status code: 429 Too Many", Kind.PASSING),
        ("Server returned non-2xx status code: 403 Forbidden: <Code>X</Code>", Kind.DENIED),
        ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", Kind.NO_BUCKET),
        ("status code: 404 Not Found: <Code>ContainerNotFound</Code>", Kind.NO_BUCKET),
        ("status code: 404 Not Found: <Code>NoSuchKey</Code>", Kind.NO_OBJECT),
        ("status code: 412 Precondition Failed", Kind.CHANGED),
        ("status code: 400 Bad Request: <Code>ExpiredToken</Code>", Kind.OTHER),
        ("PUT http://169.254.169.254/latest/api/token - HTTP error: x", Kind.NO_CREDENTIALS),
    ],
)
def test_kinds_of_errors(text, kind):
    assert client.kind_of(Exception(text)) == kind


def test_words_are_those_of_the_server():
    text = (
        "Generic S3 error: Error performing GET http://x/b in 2ms - Server returned non-2xx status "
        "code: 400 Bad Request: <?xml version='1.0'?>\n<Error><Code>ExpiredToken</Code></Error>\n\n"
        "Debug source:\nGeneric { ... }"
    )
    found = client.words(text)
    assert found == "Server returned non-2xx status code: 400 Bad Request (ExpiredToken)"


def test_sources_of_a_disk_do_not_wait():
    assert not Source("x", lambda i: b"", ["x"], None, ()).remote
