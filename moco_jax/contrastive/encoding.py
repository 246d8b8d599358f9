"""Views to queries and keys: which view has which role, and the two encode functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.micro_batches import by_parts
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

    def backbone(variables, images, groups):
        params, batch_stats = variables
        return _apply(encoder.backbone.clone(bn_groups=groups or 1), params, batch_stats, images)

    def features(params, batch_stats, images):
        groups = config.bn_groups if batch_stats else 0
        variables = params, batch_stats
        return by_parts(backbone, variables, images, config.microbatches, groups, layout)

    def encode(params, batch_stats, views, method):
        # FSDP parameters are gathered here; their gradients come back sharded.
        params = layout.replicate(params)
        encoded = []
        for images in views:
            of_backbone = batch_stats.get("backbone", {})
            pooled, of_backbone = features(params["backbone"], of_backbone, images)
            vectors, of_heads = _apply(encoder, params, batch_stats, pooled, method=method)
            batch_stats = of_heads | ({"backbone": of_backbone} if of_backbone else {})
            encoded.append(vectors)
        return encoded, batch_stats

    def encode_queries(params, batch_stats, views):
        return encode(params, batch_stats, views, "queries")

    def encode_keys(params, batch_stats, views):
        # Without batch norm there is nothing to shuffle for, and the images stay on their devices.
        groups = config.bn_groups if config.shuffle_bn and batch_stats else 1
        mixed = [shuffle(images, groups, layout) for images in views]
        keys, batch_stats = encode(params, batch_stats, mixed, "keys")
        return [unshuffle(k, groups, layout) for k in keys], batch_stats

    return Encoders(encode_queries, encode_keys)


def _apply(module, params, batch_stats, x: jax.Array, **options) -> tuple[jax.Array, Any]:
    """Returns a module's output in training and its new running averages, {} if it has none."""
    variables = {"params": params, "batch_stats": batch_stats}
    y, changed = module.apply(variables, x, train=True, mutable=["batch_stats"], **options)
    return y, changed.get("batch_stats", {})


def directions(views: tuple[jax.Array, ...], symmetric: bool) -> tuple[Views, Views]:
    """Returns the views that become queries and the views that become their keys."""
    return (views, views[::-1]) if symmetric else (views[:1], views[1:])


def interleave(keys: Sequence[jax.Array]) -> jax.Array:
    """Returns [V * B, D] of V arrays [B, D], the keys of an image side by side.

    So the keys of a device stay on it; concatenation would move half of them.
    """
    stacked = jnp.stack(keys, axis=1)
    return stacked.reshape(-1, stacked.shape[-1])
