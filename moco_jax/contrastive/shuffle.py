"""Shuffling batch norm (MoCo, sec. 3.3): keys meet other images in their batch-norm group.

Were a query and its key normalised among the same images, the groups' statistics would be a
signature by which the pair is found without looking at the image. The data order is random
already, so a fixed permutation serves as well as a random one: with the batch as [G, B/G], the
transpose puts each key group together from all query groups.
"""

import jax

from moco_jax.parallel.mesh import Layout


def shuffle(x: jax.Array, groups: int, layout: Layout) -> jax.Array:
    """Returns x [B, ...] regrouped, so that each of `groups` parts mixes all parts of x."""
    return _transpose(x, groups, x.shape[0] // groups, layout)


def unshuffle(x: jax.Array, groups: int, layout: Layout) -> jax.Array:
    """Returns the inverse of `shuffle`."""
    return _transpose(x, x.shape[0] // groups, groups, layout)


def _transpose(x: jax.Array, rows: int, columns: int, layout: Layout) -> jax.Array:
    """Returns x [B, ...] read as [rows, columns] and written column by column."""
    # Told on both sides where the parts lie, the compiler makes it one all-to-all of the batch's
    # own bytes; left alone it gathers the whole batch on every device.
    split_evenly = rows % layout.devices == 0 and columns % layout.devices == 0
    constrain = layout.shard if split_evenly else lambda grid: grid
    grid = constrain(x.reshape(rows, columns, *x.shape[1:]))
    grid = constrain(grid.swapaxes(0, 1))
    return layout.shard(grid.reshape(x.shape))
