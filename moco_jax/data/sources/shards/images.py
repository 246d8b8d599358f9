"""The images of several shards in a few arrays."""

import os
from collections.abc import Sequence

import numpy as np

from moco_jax.data.sources.packed_names import PackedNames
from moco_jax.data.sources.shards.index_file import Shard
from moco_jax.data.sources.shards.reading import ShardFiles


class Images:
    """Images by index over shards: in the order of the shards, then of the members in each.

    An image takes 24 bytes, and those of its name; no Python object is kept for it.
    """

    def __init__(self, shards: Sequence[Shard]):
        samples = [shard.samples for shard in shards]
        self._files = ShardFiles(shards)
        self._ends = np.cumsum([len(part) for part in samples])  # of each shard
        self._offsets = np.concatenate([part.offsets for part in samples])
        self._sizes = np.concatenate([part.sizes for part in samples])
        self._text = np.concatenate([part.text for part in samples])
        self._lengths = np.concatenate([part.lengths for part in samples])
        prefixes = [len(os.fsencode(os.path.basename(shard.path))) + 1 for shard in shards]
        self._prefixes = np.array(prefixes, np.uint32)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image; raises an OSError that names a shard at fault."""
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._ends, index, "right"))
        return self._files.read(shard, int(self._offsets[index]), int(self._sizes[index]))

    def names(self, with_shard: bool) -> PackedNames:
        """Returns 'shard.tar/path' of each image, or its path in the shard."""
        starts = np.cumsum(self._lengths, dtype=np.int64)
        starts -= self._lengths
        lengths = self._lengths
        if not with_shard:
            prefixes = np.repeat(self._prefixes, np.diff(self._ends, prepend=0))
            starts += prefixes
            lengths = lengths - prefixes
        return PackedNames(self._text, starts, lengths)
