"""Micro-batches: the backbone sees the batch in parts, the heads and the loss see it whole.

So the update is that of the whole batch, and in-batch negatives lose nothing. The features of all
parts come first, then the loss and its gradient by the features. Each part then runs its forward
pass again for its own backward pass, so the activations of one part are in memory at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from moco_jax.parallel.mesh import AXES, Layout

# (variables, images: arrays [b, ...], batch-norm groups) -> (arrays [b, ...], running statistics)
Encode = Callable[[Any, Any, int], tuple[Any, Any]]


def by_parts(
    encode: Encode, variables: Any, images: Any, parts: int, groups: int, layout: Layout
) -> tuple[Any, Any]:
    """Returns the code, such as features [B, F], and batch statistics of images in equal parts.

    Args:
      encode: for images of a part. The statistics must be linear in those of the groups, so that
        their mean over the parts is that of the whole batch.
      variables: of the encoder, replicated.
      images: a pytree of arrays [B, ...], split over the devices.
      parts: M; each part has B / M images.
      groups: G, batch-norm groups of the whole batch, a multiple of M; 0 without batch norm. A part
        holds G / M whole groups.
      layout: the devices.
    """
    if parts == 1:
        return encode(variables, images, groups)
    if groups // parts % layout.devices:
        # Neighbouring devices share a group: a part is a range of the whole batch.
        split = jax.tree.map(lambda x: layout.shard(x, axis=1), _split(images, parts))
        features, stats = _in_turn(encode, variables, split, groups // parts)
        return jax.tree.map(layout.shard, features), stats

    def on_device(variables, images):
        split = _split(images, parts)
        own_groups = groups // parts // layout.devices
        features, stats = _in_turn(encode, variables, split, own_groups)
        return features, jax.tree.map(lambda x: jax.lax.pmean(x, AXES), stats)

    # Each device sums the gradients of its parts, and the devices sum theirs once. In a program for
    # the whole batch they would sum after every part.
    whole, rows = PartitionSpec(), PartitionSpec(AXES)
    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(whole, rows),
        out_specs=(rows, whole),
        check_vma=False,
    )(variables, images)


def _split(images: Any, parts: int) -> Any:
    """Returns arrays [M, b, ...] of a pytree of arrays [M * b, ...]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), images)


def _in_turn(encode: Encode, variables: Any, split: Any, groups: int) -> tuple[Any, Any]:
    """Returns the code of parts [M, b, ...], arrays [M * b, ...], and the mean statistics."""

    def one(images):
        return encode(variables, images, groups)

    features, stats = jax.lax.map(jax.checkpoint(one, prevent_cse=False), split)
    features = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)
    return features, jax.tree.map(lambda x: x.mean(axis=0), stats)
