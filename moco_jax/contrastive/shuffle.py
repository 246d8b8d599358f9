"""Shuffling batch norm (MoCo, sec. 3.3): a key meets other images in its batch-norm group.

If a query and its key were normalised among the same images, the statistics of the group would
identify the pair, and the network would not have to look at the image. The data order is random
already, so a fixed permutation works as well as a random one: with the batch as [G, B/G], the
transpose builds each key group from images of all query groups.
"""

import jax

from moco_jax.parallel.mesh import Layout


def shuffle(x: jax.Array, groups: int, layout: Layout) -> jax.Array:
    """Returns x [B, ...] in an order in which each of `groups` parts mixes all parts of x."""
    return _transpose(x, groups, x.shape[0] // groups, layout)


def unshuffle(x: jax.Array, groups: int, layout: Layout) -> jax.Array:
    """Returns the inverse of `shuffle`."""
    return _transpose(x, x.shape[0] // groups, groups, layout)


def _transpose(x: jax.Array, rows: int, columns: int, layout: Layout) -> jax.Array:
    """Returns x [B, ...], read as [rows, columns] and written column by column."""
    # With the sharding fixed on both sides, the compiler emits one all-to-all of the batch.
    # Without, it gathers the whole batch on every device.
    split_evenly = rows % layout.devices == 0 and columns % layout.devices == 0
    constrain = layout.shard if split_evenly else lambda grid: grid
    grid = constrain(x.reshape(rows, columns, *x.shape[1:]))
    grid = constrain(grid.swapaxes(0, 1))
    return layout.shard(grid.reshape(x.shape))
