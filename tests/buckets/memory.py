"""A bucket without a network: the files below a folder, by a client that tests control."""

import functools
import itertools
import os
import pathlib
import threading
from collections.abc import Callable

from moco_jax.buckets.client import Client, Entry, Kind, Over, Problem


def contents(root: pathlib.Path) -> dict[str, str]:
    """Returns the texts of the objects below a folder, while threads write and remove some."""
    while True:
        files = [path for path in root.rglob("*") if path.is_file()]
        try:
            return {str(path.relative_to(root)): path.read_text() for path in files}
        except FileNotFoundError:
            continue


def _alone(request: Callable) -> Callable:
    """Returns a request that threads make one after another: a bucket's are not divided either."""

    @functools.wraps(request)
    def asked(self, *arguments):
        with self._mutex:
            return request(self, *arguments)

    return asked


class Folder:
    """The files below a folder as objects; an object is written as a whole.

    The version of an object is the number of its write. That of a file which a test writes itself
    is the time of its change.

    Attributes:
      problem: the kind of problem that each request has, None for answers.
      requests: the name and the argument of each request.
      conditional: whether it knows conditional writes.
    """

    def __init__(self, root: pathlib.Path):
        self._root, self._unfinished = root, root.with_name(f"{root.name}-unfinished")
        self._unfinished.mkdir()
        self._mutex = threading.RLock()
        self._numbers = itertools.count(1)
        # By key: the file as it was written, and the number of the write.
        self._written: dict[str, tuple[tuple[int, ...], int]] = {}
        self.problem: Kind | None = None
        self.requests: list[tuple[str, str]] = []
        self.conditional = True

    def client(self, _root: str = "") -> Client:
        reads = (self._stat, self._read, self._whole, self._names, self._names_in)
        return Client(*reads, self._write, self._remove)

    def _ask(self, name: str, argument: str) -> None:
        self.requests.append((name, argument))
        if self.problem:
            raise Problem(self.problem, "the words of the server")

    @_alone
    def _stat(self, key: str) -> Entry:
        self._ask("stat", key)
        return self._entry(key)

    def _entry(self, key: str) -> Entry:
        path = self._root / key
        try:
            status = path.stat() if path.is_file() else None
        except FileNotFoundError:  # a test has just removed it
            status = None
        if status is None:
            raise Problem(Kind.NO_OBJECT, "404")
        known, number = self._written.get(key, ((), 0))
        version = number if known == _identity(status) else status.st_mtime_ns
        return Entry(key, status.st_size, str(version))

    @_alone
    def _read(self, entry: Entry, offset: int, size: int) -> bytes:
        self._ask("read", entry.key)
        assert size > 0 and offset + size <= entry.size, "a server answers by an error"
        if self._entry(entry.key) != entry:
            raise Problem(Kind.CHANGED, "412")
        return (self._root / entry.key).read_bytes()[offset : offset + size]

    @_alone
    def _whole(self, key: str, limit: int) -> tuple[int, bytes]:
        self._ask("whole", key)
        size = self._entry(key).size
        return size, (self._root / key).read_bytes() if size <= limit else b""

    @_alone
    def _names(self, folder: str) -> list[Entry]:
        self._ask("names", folder)
        found = sorted(path for path in (self._root / folder).rglob("*") if path.is_file())
        return [self._entry(os.fspath(path.relative_to(self._root))) for path in found]

    def _names_in(self, folder: str) -> list[Entry]:
        return [entry for entry in self._names(folder) if os.path.dirname(entry.key) == folder]

    @_alone
    def _write(self, key: str, data: bytes | pathlib.Path, over: Over | Entry) -> Entry:
        self._ask("write", key)
        if over != Over.ANYTHING and not self.conditional:
            raise Problem(Kind.UNCONDITIONAL, "501")
        path = self._root / key
        there = self._entry(key) if path.is_file() else Over.NOTHING
        if over not in (Over.ANYTHING, there):
            raise Problem(Kind.CHANGED, "412")
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._unfinished / "object"  # not below the root, where it would be an object
        whole.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
        self._written[key] = _identity(whole.stat()), next(self._numbers)
        os.replace(whole, path)
        return self._entry(key)

    @_alone
    def _remove(self, key: str) -> None:
        self._ask("remove", key)
        (self._root / key).unlink(missing_ok=True)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns
