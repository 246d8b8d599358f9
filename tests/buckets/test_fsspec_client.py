"""Stores that only fsspec knows: its memory in their place, and stores that fail."""

import pytest

from moco_jax.buckets import fsspec_client, objects, schemes
from moco_jax.buckets.client import Kind, Over, Problem

fsspec = pytest.importorskip("fsspec")
URL = "memory://s/runs/x"


@pytest.fixture(autouse=True)
def empty():
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()


class Failing(fsspec.AbstractFileSystem):
    """Raises `error` at each request."""

    protocol = "failing"
    error: Exception = OSError()

    def info(self, path, **options):
        raise type(self).error


@pytest.fixture
def failing():
    fsspec.register_implementation("failing", Failing, clobber=True)
    return Failing


def test_what_is_written_can_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    first = objects.write(URL, b"bytes")
    assert first == objects.stat(URL) and first[:2] == ("runs/x", 5)
    assert objects.read(URL, first, 1, 3) == b"yte" and objects.read(URL, first, 4, 9) == b"s"
    assert objects.write(URL, tmp_path / "file").version != first.version
    assert objects.read_whole(URL, 99) == (11, b"from a file")
    assert objects.read_whole(URL, 10) == (11, b"")
    objects.remove(URL)
    objects.remove(URL)
    with pytest.raises(FileNotFoundError, match="there is no object memory://s/runs/x"):
        objects.stat(URL)


def test_lists():
    for name in ("a/1", "a/deep/2", "ab/3", "4"):
        objects.write(f"memory://s/{name}", b"x")
    keys = lambda entries: [entry.key for entry in entries]  # noqa: E731
    assert keys(objects.below("memory://s")) == ["4", "a/1", "a/deep/2", "ab/3"]
    assert keys(objects.below("memory://s/a")) == ["a/1", "a/deep/2"]
    assert keys(objects.directly_in("memory://s/a")) == ["a/1"]
    assert objects.below("memory://s/4") == []  # a file
    assert objects.below("memory://s/absent") == objects.directly_in("memory://s/absent") == []
    with pytest.raises(FileNotFoundError):
        objects.stat("memory://s/a")  # a folder
    assert objects.below("memory://s/a")[0] == objects.stat("memory://s/a/1")


@pytest.mark.parametrize("over", [Over.NOTHING, "entry"])
def test_conditions_are_refused(over):
    entry = objects.write(URL, b"1")
    with pytest.raises(objects.BucketError, match="can't write memory:// on a condition") as error:
        objects.write(URL, b"2", entry if over == "entry" else over)
    assert error.value.kind == Kind.UNCONDITIONAL
    assert objects.read_whole(URL, 9) == (1, b"1")


class WithStatus(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}\nand more")
        self.status = status


class ClientConnectorError(Exception):
    pass


class NoCredentialsError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


@pytest.mark.parametrize(
    "error, kind",
    [
        (FileNotFoundError("x"), Kind.NO_OBJECT),
        (RepositoryNotFoundError("x"), Kind.NO_OBJECT),
        (WithStatus(404), Kind.NO_OBJECT),
        (PermissionError("x"), Kind.DENIED),
        (WithStatus(403), Kind.DENIED),
        (WithStatus(401), Kind.DENIED),
        (NoCredentialsError("x"), Kind.NO_CREDENTIALS),
        (WithStatus(503), Kind.PASSING),
        (WithStatus(429), Kind.PASSING),
        (TimeoutError(), Kind.PASSING),
        (ConnectionResetError("x"), Kind.PASSING),
        (ClientConnectorError("x"), Kind.PASSING),
        (WithStatus(400), Kind.OTHER),
        (ValueError("x"), Kind.OTHER),
    ],
)
def test_kinds_of_errors(failing, error, kind):
    failing.error = error
    with pytest.raises(Problem) as problem:
        schemes.connect("failing://s").stat("x")
    assert problem.value.kind == kind and str(problem.value) not in ("", "status 400\nand more")


def test_errors_name_the_store(failing):
    failing.error = NoCredentialsError("log in")
    with pytest.raises(
        objects.BucketError, match=r"no credentials for failing://s \(log in\): see"
    ):
        objects.stat("failing://s/x")


def test_the_package_that_is_needed_is_named(monkeypatch):
    def missing(url):
        try:
            raise ModuleNotFoundError("no", name="huggingface_hub.inner")
        except ImportError as error:
            raise ImportError("Install it") from error

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match="hf://datasets needs .*: pip install huggingface_hub$"):
        objects.stat("hf://datasets/a/b")
    monkeypatch.setattr(fsspec_client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="hf://datasets needs fsspec: pip install fsspec"):
        objects.stat("hf://datasets/a/b")


@pytest.mark.parametrize(
    "url, message",
    [
        ("nope://x/y", "nope:// is unknown; allowed: s3://, gs://, az://, .*hf://"),
        ("file://x/y", "names a path on this disk: give the path alone"),
    ],
)
def test_wrong_schemes(url, message):
    with pytest.raises(ValueError, match=message):
        objects.stat(url)


def test_azure_needs_an_account(monkeypatch):
    pytest.importorskip("obstore")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ValueError, match="can't use az://c: .*Account must be specified"):
        objects.stat("az://c/x")
