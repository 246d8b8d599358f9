"""The train state and the pure train step: EMA, encode, look up, update."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive import shuffle
from moco_jax.contrastive.dictionaries import Batch, Dictionary
from moco_jax.contrastive.key_encoders import KEY_ENCODERS, Encoders
from moco_jax.models.encoder import Encoder
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.norms import global_norm

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
      key_params: of the key encoder, such as the EMA of `params`; {} where it has none of its own.
      key_batch_stats: the key encoder's own running averages, no EMA of the query's.
      opt_state: of the optimizer.
      dictionary: its entries, such as the queue's ring of key batches [K // N, N, D].
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: Any
    dictionary: Any


def state_shardings(state: TrainState, dictionary: Dictionary, layout: Layout) -> TrainState:
    """Returns each array's sharding: of the entries the dictionary's, else a parameter's."""
    shardings = jax.tree.map(lambda x: layout.parameter(x.shape), state)
    return shardings.replace(dictionary=dictionary.shardings)


def create_state(
    config: ConfigDict,
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    dictionary: Dictionary,
    layout: Layout,
) -> TrainState:
    """Returns the state at step 0, the key encoder equal to the query encoder."""
    init = functools.partial(_init, config, encoder, optimizer, dictionary)
    shardings = state_shardings(jax.eval_shape(init), dictionary, layout)
    # Inside jit: made outside, both encoders would be one buffer, which can't be donated twice.
    return jax.jit(init, out_shardings=shardings, compiler_options=_FAST_COMPILE)()


def abstract_state(
    config: ConfigDict,
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    dictionary: Dictionary,
    layout: Layout,
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, computing nothing."""
    shapes = jax.eval_shape(functools.partial(_init, config, encoder, optimizer, dictionary))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, dictionary, layout),
    )


def _init(
    config: ConfigDict,
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    dictionary: Dictionary,
) -> TrainState:
    key_encoder = KEY_ENCODERS[config.key_encoder]
    params_key, entries_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    size = config.data.image_size
    images = jnp.zeros((config.bn_groups, size, size, 3), encoder.backbone.dtype)
    variables = encoder.init(params_key, images)
    params, key_params = variables["params"], key_encoder.own(variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        key_params=key_params,
        key_batch_stats=key_encoder.own(variables["batch_stats"]),
        opt_state=optimizer.init(key_encoder.trained(params, key_params)),
        dictionary=dictionary.init(entries_key),
    )


def make_train_step(
    config: ConfigDict,
    encoder: Encoder,
    optimizer: optax.GradientTransformation,
    dictionary: Dictionary,
    layout: Layout,
) -> Callable[[TrainState, tuple[jax.Array, ...], jax.Array], tuple[TrainState, Metrics]]:
    """Returns the pure step (state, views, indices) -> (state, metrics), compiled by the caller.

    `views` are arrays [B, S, S, 3], normalised, one for each of the config's; `indices` i32[B] say
    which images they are of. With a queue and a momentum encoder the steps are those of MoCo's
    algorithm 1, in its order: the EMA precedes the keys, and the loss reads the queue before the
    keys enter it.
    """
    key_encoder = KEY_ENCODERS[config.key_encoder]
    encoders = _make_encoders(config, encoder, layout)

    def look_up(trained, prepared, state, query_views, key_views, batch):
        """Returns the loss, and what was encoded and measured."""
        encoded = key_encoder.encode(trained, prepared, state, query_views, key_views, encoders)
        contrasts = [
            dictionary.look_up(queries, keys, state.dictionary, batch)
            for queries, keys in zip(encoded.queries, encoded.keys, strict=True)
        ]
        metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *contrasts)._asdict()
        # Summed, not averaged, over the two directions, as the reference does.
        metrics["loss"] = metrics["loss"] * len(contrasts)
        metrics["feature_std"] = jnp.stack([_spread(q) for q in encoded.queries]).mean()
        return metrics["loss"], (encoded, metrics)

    def train_step(state, views, indices):
        batch = Batch(state.step, indices)
        query_views, key_views = _directions(config, views)
        with jax.named_scope("keys"):
            prepared = key_encoder.prepare(state, key_views, encoders)
        with jax.named_scope("gradient"):
            trained = key_encoder.trained(state.params, state.key_params)
            gradient = jax.grad(look_up, has_aux=True)
            grads, (encoded, metrics) = gradient(
                trained, prepared, state, query_views, key_views, batch
            )
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
        params, key_params = key_encoder.parameters(trained, prepared)
        metrics["grad_norm"] = global_norm(grads, layout)
        # The loss is of before the update: only this tells that what is saved is finite.
        metrics["param_norm"] = global_norm(trained, layout)
        keys = jax.lax.stop_gradient(_interleave(encoded.keys))
        after = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=encoded.batch_stats,
            key_params=key_params,
            key_batch_stats=encoded.key_batch_stats,
            opt_state=opt_state,
            dictionary=dictionary.update(state.dictionary, keys, batch),
        )
        # Said, not left to the compiler: what comes out is what the next step takes in.
        after = jax.lax.with_sharding_constraint(after, state_shardings(after, dictionary, layout))
        return after, layout.replicate(metrics)

    return train_step


def make_recode(
    config: ConfigDict, encoder: Encoder, layout: Layout
) -> Callable[[TrainState, tuple[jax.Array, ...]], jax.Array]:
    """Returns (state, views) -> the keys [N, D] that the state as it is makes of a step's views."""
    key_encoder = KEY_ENCODERS[config.key_encoder]
    encoders = _make_encoders(config, encoder, layout)
    encoders = encoders._replace(momentum=1.0)  # a key encoder as it is, not one update further

    def recode(state, views):
        query_views, key_views = _directions(config, views)
        prepared = key_encoder.prepare(state, key_views, encoders)
        trained = key_encoder.trained(state.params, state.key_params)
        encoded = key_encoder.encode(trained, prepared, state, query_views, key_views, encoders)
        return _interleave(encoded.keys)

    return recode


def _directions(config: ConfigDict, views: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    """Returns the views to make queries of, and those to make their keys of."""
    return (views, views[::-1]) if config.symmetric else (views[:1], views[1:])


def _make_encoders(config: ConfigDict, encoder: Encoder, layout: Layout) -> Encoders:
    """Returns what encodes queries, and keys among other images than their queries."""
    groups = config.bn_groups if config.shuffle_bn else 1

    def encode(params, batch_stats, images):
        # Gathered where they are used, if they are split; their gradients come back split.
        variables = {"params": layout.replicate(params), "batch_stats": batch_stats}
        features, changed = encoder.apply(variables, images, mutable=["batch_stats"])
        return features, changed["batch_stats"]

    def encode_queries(params, batch_stats, views):
        queries = []
        for images in views:
            q, batch_stats = encode(params, batch_stats, images)
            queries.append(q)
        return queries, batch_stats

    def encode_keys(params, batch_stats, views):
        mixed = [shuffle.shuffle(images, groups, layout) for images in views]
        keys, batch_stats = encode_queries(params, batch_stats, mixed)
        return [shuffle.unshuffle(k, groups, layout) for k in keys], batch_stats

    return Encoders(encode_queries, encode_keys, config.momentum)


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
