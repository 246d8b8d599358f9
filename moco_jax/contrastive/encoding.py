"""Views to queries and keys: which view has which role, and the two encode functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive import masks
from moco_jax.contrastive.micro_batches import by_parts
from moco_jax.contrastive.shuffle import shuffle, unshuffle
from moco_jax.models.encoder import Encoder
from moco_jax.parallel.mesh import Layout

Views = Sequence[Any]  # images [B, S, S, 3], or `Masked` ones


class Masked(NamedTuple):
    """Images of which the encoder sees some patches.

    Attributes:
      images: [B, S, S, 3].
      order: i32[B, L], patches in random order, the visible ones first.
    """

    images: jax.Array
    order: jax.Array


class Codes(NamedTuple):
    """The code of some views.

    Attributes:
      vectors: unit vectors f32[B, D] of each view.
      batch_stats: the running averages after encoding them.
      pixel_losses: f32[B] of each masked view, see `pixel_loss`.
    """

    vectors: list[jax.Array]
    batch_stats: Any
    pixel_losses: list[jax.Array]


Encode = Callable[[Any, Any, Views], Codes]  # (params, batch_stats, views) -> their code


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

    @functools.partial(jax.jit, static_argnums=2)  # traced once, for queries and keys
    def backbone(variables, view, groups):
        """Returns the features of a view, the losses of its masked patches, and statistics."""
        params, batch_stats = variables
        if isinstance(view, Masked):
            keep = masks.visible(config)
            options = {"method": "masked_loss", "normalizes": config.mask.normalize_pixels}
            return _apply(encoder, params, {}, *view, keep, **options)
        network = encoder.backbone.clone(bn_groups=groups or 1)
        pooled, batch_stats = _apply(network, params["backbone"], batch_stats, view)
        return (pooled, None), batch_stats

    def features(params, batch_stats, view):
        groups = config.bn_groups if batch_stats else 0
        own = {name: params[name] for name in ("backbone", "decoder") if name in params}
        return by_parts(backbone, (own, batch_stats), view, config.microbatches, groups, layout)

    def encode(params, batch_stats, views, method):
        # FSDP parameters are gathered here; their gradients come back sharded.
        params = layout.replicate(params)
        encoded, losses = [], []
        for view in views:
            of_backbone = batch_stats.get("backbone", {})
            (pooled, loss), of_backbone = features(params, of_backbone, view)
            losses += [] if loss is None else [loss]
            vectors, of_heads = _apply(encoder, params, batch_stats, pooled, method=method)
            batch_stats = of_heads | ({"backbone": of_backbone} if of_backbone else {})
            encoded.append(vectors)
        return Codes(encoded, batch_stats, losses)

    def encode_queries(params, batch_stats, views):
        return encode(params, batch_stats, views, "queries")

    def encode_keys(params, batch_stats, views):
        # Without batch norm there is nothing to shuffle for, and the images stay on their devices.
        groups = config.bn_groups if config.shuffle_bn and batch_stats else 1
        mixed = [shuffle(images, groups, layout) for images in views]
        codes = encode(params, batch_stats, mixed, "keys")
        return codes._replace(vectors=[unshuffle(k, groups, layout) for k in codes.vectors])

    return Encoders(encode_queries, encode_keys)


def _apply(module, params, batch_stats, *x, **options) -> tuple[Any, Any]:
    """Returns a module's output in training and its new running averages, {} if it has none."""
    variables = {"params": params, "batch_stats": batch_stats}
    y, changed = module.apply(variables, *x, train=True, mutable=["batch_stats"], **options)
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
