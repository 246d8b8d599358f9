"""Makes a folder of a bucket equal to a folder on a disk, which a program goes on changing.

Files that belong together, such as those of a checkpoint, are a group. A group is copied when it is
complete, and its last file is copied last and removed first: who finds this file finds all of them.
All other files are copied before the groups that are new.

A file that is absent may be one that a cleaner of disks removed. So only a group leaves the bucket,
and only while another whole one is there.
"""

import contextvars
import dataclasses
import json
import os
import pathlib
import posixpath
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

from moco_jax.buckets import fetching, objects
from moco_jax.buckets.client import Entry

_FILES_AT_ONCE = 8
_SMALL = 8 << 20  # bytes of a file that is read at once: it may grow meanwhile

Files = dict[str, tuple[int, int]]  # by path from the folder: size, time of change in ns


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a mirror knows about the files.

    Attributes:
      skipped: path from the folder -> whether it is not copied.
      group: path from the folder -> the folder of its group, '' for other files.
      last: the name of the file of a group that is copied last.
      mark: the name of files in no group that stay and are copied first: they show whose folder it
        is. A folder without one of them was emptied.
      every: seconds between two copies of other files, unless a group is new.
    """

    skipped: Callable[[str], bool]
    group: Callable[[str], str]
    last: str
    mark: str
    every: float


class NotAllowed(Exception):
    """Raised if the bucket may not be written any more."""


class Mirror:
    """A folder on a disk and its copy in a bucket. One thread at a time may use it."""

    def __init__(
        self, folder: pathlib.Path, url: str, rules: Rules, allowed: Callable[[], bool] = bool
    ):
        """Copies nothing yet.

        Args:
          folder: on the disk.
          url: of the folder in the bucket.
          rules: what is copied, and in which order.
          allowed: asked before each change of the bucket, whether this mirror may still write.
        """
        self.folder, self.url, self._rules = folder, url.rstrip("/"), rules
        self._allowed = allowed
        self._there: dict[str, str] = {}  # versions of the objects in the bucket
        self._copied: Files = {}  # the files as they were when they were copied
        self._next = 0.0  # time of the next copy of files that are in no group
        self.wanted: Callable[[], bool] = lambda: False  # whether to wait for the server

    def list_bucket(self) -> dict[str, Entry]:
        """Returns the objects that belong to the mirror, by the path from the URL."""
        found = fetching.relative(self.url, objects.below(self.url))
        found = {name: entry for name, entry in found.items() if not self._rules.skipped(name)}
        self._there = {name: entry.version for name, entry in found.items()}
        return found

    def complete(self, entries: dict[str, Any]) -> dict[str, Any]:
        """Returns those of the objects that are in no group or in one that is complete."""
        whole = {self._rules.group(x) for x in entries if posixpath.basename(x) == self._rules.last}
        return {x: e for x, e in entries.items() if not (g := self._rules.group(x)) or g in whole}

    def fetch(self, entries: dict[str, Entry]) -> None:
        """Writes objects to the folder, and notes that both are equal; raises as `download`."""
        fetching.download(self.url, self.folder, entries)
        files = self._files()
        self._copied |= {name: files[name] for name in entries}

    def record(self) -> bytes:
        """Returns what a later mirror of the same folder needs to know."""
        copied = {name: [*found, self._there.get(name, "")] for name, found in self._copied.items()}
        return json.dumps(copied).encode()

    def resume(self, record: bytes) -> set[str]:
        """Takes over what an earlier mirror copied, as far as the bucket has the same versions.

        Returns:
          The files that the earlier mirror copied.
        """
        try:
            copied = json.loads(record)
        except ValueError:  # after a crash of the machine the record may be empty
            copied = {}
        for name, (size, changed, version) in copied.items():
            if version and self._there.get(name) == version:
                self._copied[name] = (size, changed)
        return set(copied)

    def absent(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        """Returns those of the objects that were copied and are no longer in the folder."""
        files = self._files()
        return {x: e for x, e in entries.items() if x in self._copied and x not in files}

    def scan(self, *, final: bool = False) -> bool:
        """Copies what is new; returns whether the bucket is equal to the folder.

        Args:
          final: copy files that grow at once.

        Raises:
          BucketError: if the bucket can't be written; what is copied before is noted.
          NotAllowed: if `allowed` returns false.
          OSError: if the folder can't be read, or was emptied.
        """
        files = self._files()
        for name in self._copied.keys() - files.keys():
            if posixpath.basename(name) == self._rules.mark:
                raise OSError(f"{self.folder} was emptied: it has no {name}")
        groups: dict[str, Files] = {}
        for name, found in files.items():
            groups.setdefault(self._rules.group(name), {})[name] = found
        others = groups.pop("", {})
        ready = {g: x for g, x in groups.items() if f"{g}/{self._rules.last}" in x}
        # What is left of a group that was copied as a whole is being removed.
        copied = {group: self._of_group(self._copied, group) for group in ready}
        new = {g: x for g, x in ready.items() if not x.items() <= copied[g].items()}
        if new:  # what came before the group, but after the list of these files
            others = self._of_group(self._files(), "")
        due = final or bool(new) or time.monotonic() >= self._next
        if due and any(self._copied.get(name) != found for name, found in others.items()):
            self._copy({n: x for n, x in others.items() if self._copied.get(n) != x})
            self._next = time.monotonic() + self._rules.every
        for group in new:
            self._copy_group(group, new[group])
        self._remove_absent(files)
        return files == self._files() and all(self._copied.get(n) == x for n, x in files.items())

    def _of_group(self, files: dict[str, Any], group: str) -> dict[str, Any]:
        return {name: x for name, x in files.items() if self._rules.group(name) == group}

    def _copy_group(self, group: str, files: Files) -> None:
        """Copies a group; its last file only if no other one has changed meanwhile."""
        last = f"{group}/{self._rules.last}"
        if last in self._there:  # another version of the group
            self._remove(last)
        for name in self._of_group(self._there, group).keys() - files.keys():
            self._remove(name)
        self._copy({name: x for name, x in files.items() if name != last})
        if self._of_group(self._files(), group) == files:
            self._copy({last: files[last]})

    def _copy(self, files: Files) -> None:
        """Copies files, marks before the others; one that vanishes meanwhile is left out."""
        marks = {n: x for n, x in files.items() if posixpath.basename(n) == self._rules.mark}
        for part in (marks, {n: x for n, x in files.items() if n not in marks}):
            if part:
                self._copy_at_once(part)

    def _copy_at_once(self, files: Files) -> None:
        with futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            work = {
                name: pool.submit(contextvars.copy_context().run, self._put, name, size)
                for name, (size, _) in files.items()
            }
        failed = None
        for name, copy in work.items():
            try:
                entry = copy.result()
            except FileNotFoundError:
                continue
            except Exception as error:  # the other files are noted before it is raised
                failed = error
                continue
            self._there[name], self._copied[name] = entry.version, files[name]
        if failed:
            raise failed

    def _put(self, name: str, size: int) -> Entry:
        self._check()
        path = self.folder / name
        data = path.read_bytes() if size <= _SMALL else path
        return objects.write(f"{self.url}/{name}", data, wanted=self.wanted)

    def _remove_absent(self, files: Files) -> None:
        """Removes from the bucket groups that were removed from the folder, if another is there.

        A group that is there in part is being removed, or it is not complete yet. The last file of
        a group is removed first.
        """
        present = {self._rules.group(name) for name in files} - {""}
        last = {group: f"{group}/{self._rules.last}" for group in present}
        whole = {group for group in present if last[group] in files and last[group] in self._copied}
        others = {posixpath.dirname(group) for group in whole}
        gone = [
            name
            for name in self._copied
            if (group := self._rules.group(name))
            and group not in present
            and posixpath.dirname(group) in others
        ]
        for name in sorted(gone, key=lambda name: posixpath.basename(name) != self._rules.last):
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._check()
        objects.remove(f"{self.url}/{name}", wanted=self.wanted)
        self._there.pop(name, None)
        self._copied.pop(name, None)

    def _check(self) -> None:
        if not self._allowed():
            raise NotAllowed

    def _files(self) -> Files:
        """Returns the files of the folder that are copied."""

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError) or error.filename == str(self.folder):
                raise error

        found: Files = {}
        for root, _, names in os.walk(str(self.folder), onerror=fail):
            for name in names:
                path = os.path.join(root, name)
                short = os.path.relpath(path, self.folder)
                if self._rules.skipped(short):
                    continue
                try:
                    status = os.stat(path)
                except FileNotFoundError:
                    continue
                found[short] = (status.st_size, status.st_mtime_ns)
        return found
