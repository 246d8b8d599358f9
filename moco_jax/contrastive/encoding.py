"""Views to queries and keys: which view has which role, and the two encode functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.shuffle import shuffle, unshuffle
from moco_jax.models.encoder import Encoder
from moco_jax.parallel.mesh import Layout

Views = Sequence[jax.Array]
# (params, batch_stats, views) -> (unit vectors f32[B, D] of each view, new batch_stats)
Encode = Callable[[Any, Any, Views], tuple[list[jax.Array], Any]]


class Encoders(NamedTuple):
    """The encode functions of a step.

    Attributes:
      queries: encodes views in their own order.
      keys: shuffles the batch before encoding and restores the order of the keys.
    """

    queries: Encode
    keys: Encode


def make_encoders(config: ConfigDict, encoder: Encoder, layout: Layout) -> Encoders:
    """Returns the query encoder and the key encoder (with shuffled batch norm)."""
    groups = config.bn_groups if config.shuffle_bn else 1

    def encode(params, batch_stats, views, method):
        encoded = []
        for images in views:
            # FSDP parameters are gathered here; their gradients come back sharded.
            variables = {"params": layout.replicate(params), "batch_stats": batch_stats}
            vectors, changed = encoder.apply(
                variables, images, mutable=["batch_stats"], method=method
            )
            encoded.append(vectors)
            batch_stats = changed.get("batch_stats", {})
        return encoded, batch_stats

    def encode_queries(params, batch_stats, views):
        return encode(params, batch_stats, views, _queries)

    def encode_keys(params, batch_stats, views):
        mixed = [shuffle(images, groups, layout) for images in views]
        keys, batch_stats = encode(params, batch_stats, mixed, _keys)
        return [unshuffle(k, groups, layout) for k in keys], batch_stats

    return Encoders(encode_queries, encode_keys)


def _queries(encoder: Encoder, images: jax.Array) -> jax.Array:
    return encoder.queries(encoder.backbone(images, train=True), train=True)


def _keys(encoder: Encoder, images: jax.Array) -> jax.Array:
    return encoder.keys(encoder.backbone(images, train=True), train=True)


def directions(views: tuple[jax.Array, ...], symmetric: bool) -> tuple[Views, Views]:
    """Returns the views that become queries and the views that become their keys."""
    return (views, views[::-1]) if symmetric else (views[:1], views[1:])


def interleave(keys: Sequence[jax.Array]) -> jax.Array:
    """Returns [V * B, D] of V arrays [B, D], the keys of an image side by side.

    So the keys of a device stay on it; concatenation would move half of them.
    """
    stacked = jnp.stack(keys, axis=1)
    return stacked.reshape(-1, stacked.shape[-1])
