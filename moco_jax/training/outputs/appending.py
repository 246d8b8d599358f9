"""Files that a run appends to. A full disk neither ends the run nor leaves half a record."""

import json
import math
import os
import pathlib
from typing import IO, Any, NamedTuple

from moco_jax.parallel import cluster
from moco_jax.terminal import logs

_MARKS = b"\0 \t\r\xef\xbb\xbf"  # around a line: a block that a crash left, an editor's mark


class Appended:
    """A file that grows by whole records. Records that can't be written wait in memory."""

    def __init__(self, path: pathlib.Path, *, stays_open: bool = False):
        """Opens nothing yet.

        Args:
          path: of the file; its folder is made.
          stays_open: else it is closed after each record: a mounted bucket stores a file when it
            is closed.
        """
        self._path, self._stays_open = path, stays_open
        self._file: IO[bytes] | None = None
        self._waiting: list[bytes] = []
        self._whole: int | None = None  # length before a write that has not succeeded
        self._failed = False

    def write(self, record: bytes) -> None:
        """Appends a record, or keeps it until the next call; warns once."""
        self._waiting.append(record)
        try:
            self._flush()
        except OSError as error:
            self._close_file()
            if not self._failed:
                logs.warning(
                    "%s can't be written: %s. The run goes on; what is missing waits in memory.",
                    self._path,
                    error,
                )
            self._failed = True
            return
        if self._failed:
            logs.warning("%s is written again; nothing is missing.", self._path)
        self._failed = False

    def close(self) -> None:
        """Tries once more; warns if records are lost."""
        try:
            self._flush()
        except OSError as error:
            logs.warning("%d records of %s are lost: %s", len(self._waiting), self._path, error)
        self._close_file()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)
        # What an earlier write left, or one that a signal cut short.
        if self._whole is not None and os.fstat(self._file.fileno()).st_size > self._whole:
            self._file.truncate(self._whole)
        self._whole = self._file.seek(0, os.SEEK_END)
        rest = memoryview(b"".join(self._waiting))
        while rest:
            rest = rest[self._file.write(rest) :]
        if not self._stays_open:
            file, self._file = self._file, None
            file.close()  # on some file systems only this finds that the disk is full
        self._waiting, self._whole = [], None

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass


class Lines(NamedTuple):
    """The lines of a log, as bytes without line breaks.

    Attributes:
      kept: (line, entry) up to the last step.
      later: after it.
      broken: not an object of finite numbers with a `step`.
    """

    kept: list[tuple[bytes, dict[str, float]]]
    later: list[bytes]
    broken: list[bytes]


def resume(path: pathlib.Path, last_step: int, *, lists: bool = False) -> list[dict[str, Any]]:
    """Returns the entries up to this step; moves all other lines to `<name>.dropped.jsonl`.

    Lines stay as they are, byte for byte. Prints which steps moved; warns of lines that can't be
    read.

    Args:
      path: of the log.
      last_step: that is kept.
      lists: whether the values are lists of numbers, not numbers.

    Raises:
      OSError: if the file can't be read or changed.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    lines = _sorted(data, last_step, lists)
    dropped = path.with_suffix(".dropped.jsonl")
    if lines.later or lines.broken:
        with open(dropped, "ab") as file:
            file.write(b"".join(line + b"\n" for line in (*lines.later, *lines.broken)))
    if lines.later:
        steps = sorted(json.loads(line)["step"] for line in lines.later)
        cluster.say(_repeated(steps, dropped))
    if lines.broken:
        logs.warning(
            "lines of %s that can't be read: %d, such as %.60r; they are moved to %s",
            path,
            len(lines.broken),
            lines.broken[0],
            dropped.name,
        )
    _replace(path, data, b"".join(line + b"\n" for line, _ in lines.kept))
    return [entry for _, entry in lines.kept]


def _repeated(steps: list[int], dropped: pathlib.Path) -> str:
    """Returns a line about entries of these steps, in order, that are no longer in the log."""
    which = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
    count = f"{len(steps)} line{'s' * (len(steps) > 1)}"
    return f"the log has {which}, which this start repeats: {count} moved to {dropped.name}"


def _sorted(data: bytes, last_step: int, lists: bool) -> Lines:
    lines = Lines([], [], [])
    for line in data.split(b"\n"):
        entry = _entry(line, lists)
        if entry is None and _entry(line.strip(_MARKS), lists) is not None:
            line = line.strip(_MARKS)
            entry = _entry(line, lists)
        if entry is None:
            lines.broken.extend([line] if line.strip() else [])
        elif entry["step"] <= last_step:
            lines.kept.append((line, entry))
        else:
            lines.later.append(line)
    return lines


def _entry(line: bytes, lists: bool) -> dict[str, Any] | None:
    """Returns the entry of a line, None if it is not an object of finite numbers with a step."""
    try:
        entry: Any = json.loads(line.decode())
        if not isinstance(entry, dict) or not isinstance(entry["step"], int):
            return None
        numbers = [entry["step"]]
        for name, value in entry.items():
            numbers += value if lists and name != "step" else [value]
        finite = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return entry if finite else None


def _replace(path: pathlib.Path, old: bytes, new: bytes) -> None:
    """Gives a file that contains `old` the content `new`; a crash leaves one of the two."""
    if new == old:
        return
    if old.startswith(new):
        os.truncate(path, len(new))  # needs no space
        return
    write_whole(path, new)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file under another name and renames it, so that it is never half a file.

    Raises:
      ValueError: if it can't be written; the message names the file and the reason.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{path} can't be written: {error.strerror or error}") from error


def append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line; ends first a line that a crash cut short.

    Raises:
      ValueError: if it can't be written; then the file is as before.
    """
    try:
        with open(path, "ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")
            content = ("\n" if torn else "").encode() + line.encode() + b"\n"
            try:
                if file.write(content) != len(content):
                    raise OSError("no space left")
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise ValueError(f"{path} can't be written: {error.strerror or error}") from error
