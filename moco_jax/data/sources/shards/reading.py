"""Reads bytes of shards by offset, with a limit on the files that are open at once."""

import collections
import resource
import threading
from collections.abc import Sequence

from moco_jax.data.sources.archives.members import check_size
from moco_jax.data.sources.shards.index_file import Shard
from moco_jax.data.sources.storage.files import File, open_file

_MOST_OPEN = 512  # or a quarter of what the system allows


class ShardFiles:
    """Open files of shards; threads can read at once."""

    def __init__(self, shards: Sequence[Shard], most: int = 0):
        """Opens nothing yet; at most `most` files are open, 0 for what the system allows."""
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = most or max(1, min(_MOST_OPEN, allowed // 4))
        self._shards = [(s.path, s.size, s.version, s.remote) for s in shards]
        self._open: collections.OrderedDict[int, File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns the bytes of an image.

        Raises:
          OSError: if the shard is gone, another file by now, or shorter; the message names it.
        """
        check_size(size)
        file = self._opened(shard)
        data = file.image_at(offset, size)
        if len(data) < size:
            raise OSError(f"can't read {file.path}: it ends {size - len(data)} bytes too early")
        return data

    def _opened(self, shard: int) -> File:
        """Returns an open shard; the one that is unused for longest closes when it is read."""
        path, size, version, remote = self._shards[shard]
        if remote is not None:
            return remote
        with self._lock:
            if (file := self._open.get(shard)) is not None:
                self._open.move_to_end(shard)
                return file
        file = open_file(path)
        if (file.size, file.version) != (size, version):
            raise OSError(f"can't read {path}: it was changed or replaced after it was listed")
        with self._lock:
            self._open[shard] = file
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return file
