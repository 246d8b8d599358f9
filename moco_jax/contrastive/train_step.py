"""The pure train step: EMA, encode, look up, update (MoCo, algorithm 1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moco_jax.contrastive.dictionaries import Dictionary, StepIndices
from moco_jax.contrastive.encoding import directions, interleave
from moco_jax.contrastive.key_encoders import KeyEncoder
from moco_jax.contrastive.state import TrainState, state_shardings
from moco_jax.models.backbones import Backbone
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.norms import global_norm

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, tuple[jax.Array, ...], jax.Array], tuple[TrainState, Metrics]]
Recode = Callable[[TrainState, tuple[jax.Array, ...]], jax.Array]


def make_train_step(
    key_encoder: KeyEncoder,
    dictionary: Dictionary,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    backbone: Backbone,
    symmetric: bool,
    loss_scale: float = 1.0,
) -> TrainStep:
    """Returns the pure step (state, views, indices) -> (state, metrics); the caller compiles it.

    `views` are normalised images [B, S, S, 3], one array for each view of the config; `indices`
    i32[B] identify the images. The order is that of algorithm 1: the EMA precedes the keys, and the
    loss reads the dictionary before the keys enter it. The loss is multiplied by `loss_scale`.
    `backbone` is that of the encoder.
    """

    def train_step(state, views, indices):
        batch = StepIndices(state.step, indices)
        query_views, key_views = directions(views, symmetric)

        with jax.named_scope("keys"):
            key_params = key_encoder.follow(state.key_params, state.params, state.step)
            fixed = key_encoder.encode_fixed_keys(key_params, state.key_batch_stats, key_views)

        def look_up(trainable):
            encoded = key_encoder.encode(trainable, fixed, state, query_views, key_views)
            contrasts = [
                dictionary.look_up(queries, keys, state.dictionary, batch)
                for queries, keys in zip(encoded.queries, encoded.keys, strict=True)
            ]
            metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *contrasts)._asdict()
            # The reference sums the loss over the directions.
            metrics["loss"] = metrics["loss"] * (len(contrasts) * loss_scale)
            metrics["feature_std"] = jnp.stack([_spread(q) for q in encoded.queries]).mean()
            return metrics["loss"], (encoded, metrics)

        with jax.named_scope("gradient"):
            trainable = key_encoder.trainable(state.params, key_params)
            grads, (encoded, metrics) = jax.grad(look_up, has_aux=True)(trainable)
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
