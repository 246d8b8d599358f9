"""The pure train step: EMA, encode, look up, update (MoCo, algorithm 1).

A masked autoencoder has the same step without keys and look-up.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moco_jax.contrastive.dictionaries import Dictionary, StepIndices
from moco_jax.contrastive.encoding import Masked, directions, interleave
from moco_jax.contrastive.key_encoders import Encoded, KeyEncoder
from moco_jax.contrastive.losses import Loss, Metrics
from moco_jax.contrastive.masks import DrawOrder
from moco_jax.contrastive.state import TrainState, state_shardings
from moco_jax.models.backbones import Backbone
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.norms import global_norm

TrainStep = Callable[[TrainState, tuple[jax.Array, ...], jax.Array], tuple[TrainState, Metrics]]
Recode = Callable[[TrainState, tuple[jax.Array, ...]], jax.Array]


def make_train_step(
    key_encoder: KeyEncoder,
    dictionary: Dictionary,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    loss: Loss,
    backbone: Backbone,
    symmetric: bool,
    draw_order: DrawOrder | None = None,
) -> TrainStep:
    """Returns the pure step (state, views, indices) -> (state, metrics); the caller compiles it.

    `views` are normalised images [B, S, S, 3], one array for each view of the config; `indices`
    i32[B] identify the images. The order is that of algorithm 1: the EMA precedes the keys, and the
    loss reads the dictionary before the keys enter it.

    Args:
      loss: reads the dictionary.
      backbone: of the encoder.
      symmetric: whether each view is query and key in turn.
      draw_order: orders the patches of masked queries; None if they are whole.
    """

    def train_step(state, views, indices):
        batch = StepIndices(state.step, indices)
        query_views, key_views = directions(views, symmetric)
        if draw_order is not None:
            orders = (draw_order(batch, i) for i in range(len(query_views)))
            query_views = tuple(map(Masked, query_views, orders))

        with jax.named_scope("keys"):
            key_params = key_encoder.follow(state.key_params, state.params, state.step)
            fixed = key_encoder.encode_fixed_keys(key_params, state.key_batch_stats, key_views)

        def loss_of(trainable) -> tuple[jax.Array, tuple[Encoded, Metrics]]:
            encoded = key_encoder.encode(trainable, fixed, state, query_views, key_views)
            metrics = loss(encoded, state.dictionary, batch)
            metrics["feature_std"] = jnp.stack([_spread(q) for q in encoded.queries]).mean()
            return metrics["loss"], (encoded, metrics)

        with jax.named_scope("gradient"):
            trainable = key_encoder.trainable(state.params, key_params)
            grads, (encoded, metrics) = jax.grad(loss_of, has_aux=True)(trainable)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        params, key_params = key_encoder.split(trainable, key_params)
        metrics["grad_norm"] = global_norm(grads, layout)
        by_queries, _ = key_encoder.split(grads, {})
        first, last = _ends(by_queries["backbone"], backbone)
        metrics["grad_norm_first"] = global_norm(first, layout)
        metrics["grad_norm_last"] = global_norm(last, layout)
        # The loss is from before the update; this norm shows whether the saved state is finite.
        metrics["param_norm"] = global_norm(trainable, layout)
        keys = jax.lax.stop_gradient(interleave(encoded.keys))
        after = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=encoded.batch_stats,
            key_params=key_params,
            key_batch_stats=encoded.key_batch_stats,
            opt_state=opt_state,
            dictionary=dictionary.update(state.dictionary, keys, batch),
        )
        # The next step takes these shardings; the compiler must not choose others.
        after = jax.lax.with_sharding_constraint(after, state_shardings(after, dictionary, layout))
        return after, layout.replicate(metrics)

    return train_step


def make_recode(key_encoder: KeyEncoder, *, symmetric: bool) -> Recode:
    """Returns (state, views) -> keys [N, D] of a step's views, by the encoders of the state."""

    def recode(state, views):
        query_views, key_views = directions(views, symmetric)
        fixed = key_encoder.encode_fixed_keys(state.key_params, state.key_batch_stats, key_views)
        trainable = key_encoder.trainable(state.params, state.key_params)
        return interleave(key_encoder.encode(trainable, fixed, state, query_views, key_views).keys)

    return recode


def _ends(grads: Any, backbone: Backbone) -> tuple[Any, Any]:
    """Returns a backbone's gradients of its stem and of its last block.

    A frozen stem has no gradient; its first block stands for it.
    """
    stem = [name for name in grads if name.startswith(("stem", "patch_embed"))]
    first = [name for name in stem if name not in backbone.frozen] or backbone.blocks[:1]
    return {name: grads[name] for name in first}, grads[backbone.blocks[-1]]


def _spread(queries: jax.Array) -> jax.Array:
    """Returns the mean standard deviation of unit vectors f32[B, D], times sqrt(D).

    It is near 1 if they fill the sphere and 0 if all have collapsed into one.
    """
    return jax.lax.stop_gradient(queries.std(axis=0).mean() * queries.shape[-1] ** 0.5)
