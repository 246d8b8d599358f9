"""Micro-batches: the backbone sees the batch in parts, the heads and the loss see it whole.

So the update is that of the whole batch, and in-batch negatives lose nothing. The features of all
parts come first, then the loss and its gradient by the features. Each part then runs its forward
pass again for its own backward pass, so the activations of one part are in memory at a time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from moco_jax.parallel.mesh import Layout


def by_parts(
    encode: Callable[[jax.Array], tuple[jax.Array, Any]],
    images: jax.Array,
    parts: int,
    groups: int,
    layout: Layout,
) -> tuple[jax.Array, Any]:
    """Returns features [B, F] and batch statistics of images [B, ...], encoded in equal parts.

    Args:
      encode: images [B / parts, ...] to features [B / parts, F] and running batch statistics, both
        functions of these images only. The statistics must be linear in those of the groups, so
        that their mean over the parts is that of the whole batch.
      images: split over the devices.
      parts: M; each part has B / M images of every device.
      groups: G, batch-norm groups of the whole batch, a multiple of M; 0 without batch norm. A part
        holds G / M whole groups.
      layout: the devices.
    """
    if parts == 1:
        return encode(images)
    # Of each block of neighbouring images, every part has an equal number: a device keeps its own
    # images where it holds whole groups.
    blocks = math.gcd(layout.devices, groups // parts)
    split = _swap(images.reshape(blocks, parts, -1, *images.shape[1:]), layout)
    split = layout.shard(split.reshape(parts, -1, *images.shape[1:]), axis=1)
    features, stats = jax.lax.map(jax.checkpoint(encode, prevent_cse=False), split)
    features = features.reshape(parts, blocks, -1, features.shape[-1])
    features = layout.shard(features.swapaxes(0, 1).reshape(len(images), -1))
    return features, jax.tree.map(lambda x: x.mean(axis=0), stats)


def _swap(blocks: jax.Array, layout: Layout) -> jax.Array:
    """Returns [blocks, parts, ...] as [parts, blocks, ...], without communication if it can."""
    if blocks.shape[0] % layout.devices:
        return blocks.swapaxes(0, 1)
    return layout.shard(layout.shard(blocks).swapaxes(0, 1), axis=1)
