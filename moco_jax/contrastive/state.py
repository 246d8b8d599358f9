"""The train state of pretraining."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import Dictionary
from moco_jax.contrastive.key_encoders import KeyEncoder
from moco_jax.models.encoder import Encoder
from moco_jax.parallel.mesh import Layout


class TrainState(flax.struct.PyTreeNode):
    """Everything that a resumed run needs besides its config.

    Attributes:
      step: i32[], steps done.
      params: of the query encoder: `backbone`, `head` and perhaps `predictor`.
      batch_stats: running averages of the query encoder's batch norms.
      key_params: of the key encoder, such as the EMA of `params`, without `predictor`; {} if it has
        none.
      key_batch_stats: the key encoder's own running averages, not an EMA.
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


def init_state(
    config: ConfigDict,
    encoder: Encoder,
    key_encoder: KeyEncoder,
    optimizer: optax.GradientTransformation,
    dictionary: Dictionary,
) -> TrainState:
    """Returns the state at step 0. A key encoder starts equal to the query encoder.

    It must be called inside `jax.jit`: outside, both encoders would be one buffer, which cannot be
    donated twice.
    """
    params_key, entries_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    size = config.data.image_size
    images = jnp.zeros((config.bn_groups, size, size, 3), encoder.backbone.dtype)
    variables = encoder.init(params_key, images)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    key_params = key_encoder.init_key_params(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        key_params=key_params,
        key_batch_stats=key_encoder.init_key_params(batch_stats),
        opt_state=optimizer.init(key_encoder.trainable(params, key_params)),
        dictionary=dictionary.init(entries_key),
    )


def state_shardings(state: TrainState, dictionary: Dictionary, layout: Layout) -> TrainState:
    """Returns the sharding of each array of a state."""
    return layout.parameters(state).replace(dictionary=dictionary.shardings)
