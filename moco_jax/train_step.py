"""The train state and the pure train step: EMA, encode, look up, update."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax import momentum, shuffle
from moco_jax.config import keys_per_step
from moco_jax.contrast import info_nce
from moco_jax.dictionaries import queue
from moco_jax.mesh import Layout
from moco_jax.models.encoder import Encoder

Metrics = dict[str, jax.Array]

# For what runs once: XLA would take longer to optimise every parameter's random bits than to draw
# them (a small ResNet on a CPU: 12 s, against 2 s).
_FAST_COMPILE = {"xla_backend_optimization_level": 0}


class TrainState(flax.struct.PyTreeNode):
    """All that a resumed run needs besides its config.

    Attributes:
      step: i32[], steps done.
      params: of the query encoder.
      batch_stats: running averages of the query encoder's batch norms.
      key_params: of the key encoder, the EMA of `params`.
      key_batch_stats: the key encoder's own running averages, no EMA of the query's.
      opt_state: of the optimizer.
      dictionary: [K // N, N, D], the ring of key batches, in `queue_dtype`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: Any
    dictionary: jax.Array


def state_shardings(state: TrainState, layout: Layout) -> TrainState:
    """Returns each array's sharding: the dictionary's over its keys, the others' as parameters."""
    shardings = jax.tree.map(lambda x: layout.parameter(x.shape), state)
    return shardings.replace(dictionary=layout.sharded(axis=1))


def create_state(
    config: ConfigDict, encoder: Encoder, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """Returns the state at step 0, the key encoder equal to the query encoder."""
    init = functools.partial(_init, config, encoder, optimizer)
    shardings = state_shardings(jax.eval_shape(init), layout)
    # Inside jit: made outside, both encoders would be one buffer, which can't be donated twice.
    return jax.jit(init, out_shardings=shardings, compiler_options=_FAST_COMPILE)()


def abstract_state(
    config: ConfigDict, encoder: Encoder, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, computing nothing."""
    shapes = jax.eval_shape(functools.partial(_init, config, encoder, optimizer))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, layout),
    )


def _init(config: ConfigDict, encoder: Encoder, optimizer) -> TrainState:
    params_key, queue_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    size = config.data.image_size
    images = jnp.zeros((config.bn_groups, size, size, 3), encoder.backbone.dtype)
    variables = encoder.init(params_key, images)
    ring = queue.init(
        queue_key,
        queue_size=config.queue_size,
        keys_per_step=keys_per_step(config),
        dim=config.model.dim,
        dtype=config.queue_dtype,
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        key_params=variables["params"],
        key_batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        dictionary=ring,
    )


def make_train_step(
    config: ConfigDict, encoder: Encoder, optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[[TrainState, tuple[jax.Array, jax.Array]], tuple[TrainState, Metrics]]:
    """Returns the pure step (state, views) -> (state, metrics), to be compiled by the caller.

    `views` are two arrays [B, S, S, 3], normalised. The steps are those of MoCo's algorithm 1, in
    its order: the EMA precedes the keys, and the loss reads the queue before the keys enter it.
    """
    groups = config.bn_groups if config.shuffle_bn else 1

    def encode(params, batch_stats, images):
        # Gathered where they are used, if they are split; their gradients come back split.
        variables = {"params": layout.replicate(params), "batch_stats": batch_stats}
        features, changed = encoder.apply(variables, images, mutable=["batch_stats"])
        return features, changed["batch_stats"]

    def encode_keys(key_params, batch_stats, images):
        images = shuffle.shuffle(images, groups, layout)
        keys, batch_stats = encode(key_params, batch_stats, images)
        return shuffle.unshuffle(keys, groups, layout), batch_stats

    def look_up(params, batch_stats, query_views, keys, ring):
        """Returns the loss, and (batch_stats, metrics)."""
        contrasts, stds = [], []
        for images, k in zip(query_views, keys, strict=True):
            queries, batch_stats = encode(params, batch_stats, images)
            contrasts.append(
                info_nce(queries, k, ring, temperature=config.temperature, layout=layout)
            )
            stds.append(_spread(queries))
        metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *contrasts)._asdict()
        # Summed, not averaged, over the two directions, as the reference does.
        metrics["loss"] = metrics["loss"] * len(contrasts)
        metrics["feature_std"] = jnp.stack(stds).mean()
        return metrics["loss"], (batch_stats, metrics)

    def train_step(state, views):
        query_views, key_views = (
            (views, views[::-1]) if config.symmetric else (views[:1], views[1:])
        )

        key_params = momentum.update(state.key_params, state.params, config.momentum)
        keys, key_batch_stats = [], state.key_batch_stats
        for images in key_views:
            k, key_batch_stats = encode_keys(key_params, key_batch_stats, images)
            keys.append(jax.lax.stop_gradient(k))

        gradient = jax.grad(look_up, has_aux=True)
        grads, (batch_stats, metrics) = gradient(
            state.params, state.batch_stats, query_views, keys, state.dictionary
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        # The loss is of before the update: only this tells that what is saved is finite.
        metrics["param_norm"] = optax.tree.norm(params)
        after = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            key_params=key_params,
            key_batch_stats=key_batch_stats,
            opt_state=opt_state,
            dictionary=queue.enqueue(state.dictionary, _interleave(keys), state.step),
        )
        # Said, not left to the compiler: what comes out is what the next step takes in.
        after = jax.lax.with_sharding_constraint(after, state_shardings(after, layout))
        return after, layout.replicate(metrics)

    return train_step


def _interleave(keys: list[jax.Array]) -> jax.Array:
    """Returns [V * B, D] of V arrays [B, D], the keys of an image side by side.

    So each device's keys stay on it; one array after the other would move half of them.
    """
    stacked = jnp.stack(keys, axis=1)
    return stacked.reshape(-1, stacked.shape[-1])


def _spread(queries: jax.Array) -> jax.Array:
    """Returns the mean standard deviation of unit vectors f32[B, D], times sqrt(D).

    Near 1 where they fill the sphere, 0 where all have collapsed into one.
    """
    return jax.lax.stop_gradient(queries.std(axis=0).mean() * queries.shape[-1] ** 0.5)
