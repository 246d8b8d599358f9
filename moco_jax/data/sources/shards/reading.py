"""Reads bytes of shards by offset, with a limit on the files that are open at once."""

import collections
import dataclasses
import os
import resource
import threading
import weakref
from collections.abc import Sequence

from moco_jax.data.sources.archives.members import check_size
from moco_jax.data.sources.shards.index_file import Shard

_MOST_OPEN = 512  # or a quarter of what the system allows


@dataclasses.dataclass
class _Open:
    descriptor: int
    readers: int = 0


class ShardFiles:
    """Open files of shards; threads can read at once."""

    def __init__(self, shards: Sequence[Shard], most: int = 0):
        """Opens nothing yet; at most `most` files are open, 0 for what the system allows."""
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = most or max(1, min(_MOST_OPEN, allowed // 4))
        self._shards = [(shard.path, shard.size, shard.changed) for shard in shards]
        self._open: collections.OrderedDict[int, _Open] = collections.OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns bytes of a shard.

        Raises:
          OSError: if the shard is gone, another file by now, or shorter; the message names it.
        """
        check_size(size)
        path = self._shards[shard][0]
        file = self._take(shard)
        try:
            data = os.pread(file.descriptor, size, offset)
        except MemoryError as error:
            raise OSError(f"not enough memory for {size} bytes") from error
        finally:
            self._give_back(file)
        if len(data) < size:
            raise OSError(f"can't read {path}: it ends {size - len(data)} bytes too early")
        return data

    def _take(self, shard: int) -> _Open:
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = _Open(self._opened(shard))
            self._open.move_to_end(shard)
            file.readers += 1
            return file

    def _give_back(self, file: _Open) -> None:
        with self._lock:
            file.readers -= 1
            if len(self._open) > self._most:
                idle = [number for number, other in self._open.items() if not other.readers]
                for number in idle[: len(self._open) - self._most]:
                    os.close(self._open.pop(number).descriptor)

    def _opened(self, shard: int) -> int:
        path, size, changed = self._shards[shard]
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (size, changed):
            os.close(descriptor)
            raise OSError(f"can't read {path}: it was changed or replaced after it was listed")
        return descriptor


def _close_all(files: dict[int, _Open]) -> None:
    for file in files.values():
        os.close(file.descriptor)
    files.clear()
