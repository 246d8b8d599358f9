"""A cache on the disk for images in buckets: the second epoch needs no network.

Each image is a file, so several processes can use the cache, and one that is killed leaves nothing
half done: a file appears with all its bytes. A file has a checksum, which also covers its name, and
the name covers URL, version and extent of the image: after a crash of the machine, a file without
its bytes is no image. Nothing about an image is kept in memory.

The files are spread over folders by a hash, and each folder has the same part of the allowed bytes.
If it is full, files that nobody used lately are removed; an order that visits all images before it
repeats one gains nothing from replacing its own. Each process counts the bytes that it adds, and
counts those of others from time to time: together they may use a few percent more.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

from moco_jax.buckets import objects
from moco_jax.buckets.client import Entry
from moco_jax.terminal import logs
from moco_jax.terminal.paths import cache_folder

_FOLDERS = 64
_PARTS = 16  # a folder is counted again when a process has added this fraction of its bytes
_GOAL = 7 / 8  # of the allowed bytes, when files are removed
_BLOCK = 4096  # bytes; a file takes whole blocks
_FREE = 1 << 30  # bytes of the disk that stay free, for checkpoints
_PAUSE = 600.0  # seconds between two attempts to write into a full folder or on a full disk
_HOUR = 3600.0
# Seconds since the last use after which a file may be removed: of other data, and of the data
# that this process reads (objects that were replaced).
_OTHERS, _OWN = _HOUR, 7 * 24 * _HOUR
_CHECK = struct.Struct("<I")
_NAME = re.compile(r"([0-9a-f]{8})-[0-9a-f]{32}(\.[0-9a-f]{16})?")


@contextlib.contextmanager
def keeping(gigabytes: float) -> Iterator[None]:
    """Files that are opened within the block keep their images, at most this many GB; 0: none."""
    limit = int(gigabytes * 1e9)
    _current.append(_opened(_root(), limit) if limit else None)
    try:
        yield
    finally:
        _current.pop()


def note(gigabytes: float) -> str:
    """Returns the line that says where images are kept."""
    return f"images are kept in {_root()}: at most {gigabytes:g} GB (data.cache_gigabytes)"


def reader() -> Callable[[str, Entry, int, int], bytes]:
    """Returns `objects.read` for images, through the cache of the `keeping` block."""
    cache = _current[-1]
    if cache is None:
        return objects.read

    def read(url: str, entry: Entry, offset: int, size: int) -> bytes:
        if not entry.version:  # a replaced object would go unnoticed
            return objects.read(url, entry, offset, size)
        group = _digest(url.rpartition("/")[0], 4)
        cache.own.add(group)
        name = f"{group}-{_digest(repr((url, entry.version, entry.size, offset, size)), 16)}"
        if (data := cache.get(name, size)) is None:
            data = objects.read(url, entry, offset, size)
            cache.put(name, data)
        return data

    return read


class Cache:
    """Images on the disk by name; safe to use from threads and processes at once.

    Attributes:
      own: the groups of images that this process reads.
    """

    def __init__(self, root: str, limit: int):
        """Writes nothing yet; `limit` is in bytes."""
        self.own: set[str] = set()
        self._root, self._limit = root, limit // _FOLDERS
        self._used: list[int | None] = [None] * _FOLDERS  # bytes in each folder
        self._added = [0] * _FOLDERS  # by this process, since the folder was counted
        self._full_until = [0.0] * _FOLDERS
        self._off_until = 0.0
        self._lock, self._warned = threading.Lock(), False

    def get(self, name: str, most: int) -> bytes | None:
        """Returns the bytes of an image, at most `most`; None if they are not there or damaged."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            size = status.st_size - _CHECK.size
            if not stat.S_ISREG(status.st_mode) or not 0 <= size <= most:
                return None
            check = os.pread(descriptor, _CHECK.size, 0)
            data = os.pread(descriptor, size, _CHECK.size)
            if check != _check(name, data):
                return None
            if time.time() - status.st_mtime > _OTHERS / 2:
                with contextlib.suppress(OSError):  # a file of another user
                    os.utime(descriptor)  # the time of the last use
            return data
        except (OSError, MemoryError):
            return None
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes) -> None:
        """Adds an image if there is room; a disk that can't be written is no error."""
        path = self._path(name)
        temporary = f"{path}.{secrets.token_hex(8)}"
        try:
            if not self._has_room(_folder(name), len(data) + _CHECK.size):
                return
            with open(temporary, "xb", buffering=0) as file:
                written = os.writev(file.fileno(), [_check(name, data), data])
                if written < _CHECK.size + len(data):
                    raise OSError("the disk is full")
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            self._used[_folder(name)] = None  # somebody may have removed the folder
            self._pause(str(error))

    def _path(self, name: str) -> str:
        return f"{self._root}/{_folder(name):02}/{name}"

    def _pause(self, why: str) -> None:
        with self._lock:
            self._off_until = time.monotonic() + _PAUSE
            warned, self._warned = self._warned, True
        if not warned:
            logs.warning("images can't be kept in %s now: %s", self._root, why)

    def _has_room(self, folder: int, size: int) -> bool:
        """Returns whether a folder has room for a file of this many bytes, which then count."""
        size = -(-size // _BLOCK) * _BLOCK
        now = time.monotonic()
        if now < self._off_until or now < self._full_until[folder]:
            return False
        with self._lock:
            used = self._used[folder]
            if used is None:
                os.makedirs(f"{self._root}/{folder:02}", exist_ok=True)
            if used is None or used + size > self._limit or self._is_outdated(folder):
                used, self._added[folder] = self._counted(folder, size), 0
            self._used[folder] = used
            if used + size > self._limit:
                self._full_until[folder] = now + _PAUSE
                return False
            self._used[folder] = used + size
            self._added[folder] += size
        status = os.statvfs(self._root)
        if status.f_bavail * status.f_frsize < _FREE + size:
            raise OSError(f"less than {_FREE >> 30} GiB of its disk are free")
        return True

    def _is_outdated(self, folder: int) -> bool:
        return self._added[folder] > self._limit // _PARTS

    def _counted(self, folder: int, size: int) -> int:
        """Returns the bytes in a folder, after old files made room for `size` more bytes."""
        total, old, now = 0, [], time.time()
        with os.scandir(f"{self._root}/{folder:02}") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    status = entry.stat(follow_symlinks=False)
                    total += (taken := status.st_blocks * 512)
                    found = _NAME.fullmatch(entry.name)
                    age = now - status.st_mtime
                    unfinished = found and found[2]
                    own = found and found[1] in self.own and not unfinished
                    if found and age > (_OWN if own else _OTHERS):
                        old.append((status.st_mtime, taken, entry.path))
        if total + size <= self._limit:
            return total
        for _, taken, path in sorted(old):
            if total + size <= self._limit * _GOAL:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= taken
        return total


_opened = functools.cache(Cache)  # all sources of a process count together
_current: list[Cache | None] = [None]  # the last one: of files that are opened now


def _root() -> str:
    return os.path.join(cache_folder(), "images")


def _folder(name: str) -> int:
    return int(name[-4:], 16) % _FOLDERS


def _check(name: str, data: bytes) -> bytes:
    return _CHECK.pack(zlib.crc32(data, zlib.crc32(name.encode())))


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=size).hexdigest()
