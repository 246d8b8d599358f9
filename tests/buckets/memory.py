"""A bucket without a network: the files below a folder, by a client that tests control."""

import os
import pathlib

from moco_jax.buckets.client import Client, Entry, Kind, Over, Problem


class Folder:
    """The files below a folder as objects.

    Attributes:
      problem: the kind of problem that each request has, None for answers.
      requests: the name and the argument of each request.
      conditional: whether it knows conditional writes.
    """

    def __init__(self, root: pathlib.Path):
        self._root = root
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

    def _stat(self, key: str) -> Entry:
        self._ask("stat", key)
        return self._entry(key)

    def _entry(self, key: str) -> Entry:
        if not (self._root / key).is_file():
            raise Problem(Kind.NO_OBJECT, "404")
        status = (self._root / key).stat()
        return Entry(key, status.st_size, str(status.st_mtime_ns))

    def _read(self, entry: Entry, offset: int, size: int) -> bytes:
        self._ask("read", entry.key)
        assert size > 0 and offset + size <= entry.size, "a server answers by an error"
        if self._entry(entry.key) != entry:
            raise Problem(Kind.CHANGED, "412")
        return (self._root / entry.key).read_bytes()[offset : offset + size]

    def _whole(self, key: str, limit: int) -> tuple[int, bytes]:
        self._ask("whole", key)
        size = self._entry(key).size
        return size, (self._root / key).read_bytes() if size <= limit else b""

    def _names(self, folder: str) -> list[Entry]:
        self._ask("names", folder)
        found = sorted(path for path in (self._root / folder).rglob("*") if path.is_file())
        return [self._entry(os.fspath(path.relative_to(self._root))) for path in found]

    def _names_in(self, folder: str) -> list[Entry]:
        return [entry for entry in self._names(folder) if os.path.dirname(entry.key) == folder]

    def _write(self, key: str, data: bytes | pathlib.Path, over: Over | Entry) -> Entry:
        self._ask("write", key)
        if over != Over.ANYTHING and not self.conditional:
            raise Problem(Kind.UNCONDITIONAL, "501")
        path = self._root / key
        there = self._entry(key) if path.is_file() else Over.NOTHING
        if over not in (Over.ANYTHING, there):
            raise Problem(Kind.CHANGED, "412")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
        return self._entry(key)

    def _remove(self, key: str) -> None:
        self._ask("remove", key)
        (self._root / key).unlink(missing_ok=True)
