"""The key encoders by name: an EMA of the query encoder, a trained one, a shared one, or none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.encoding import Encoders, Views, make_encoders
from moco_jax.models.encoder import Encoder, of_keys
from moco_jax.parallel.mesh import Layout


class FixedKeys(NamedTuple):
    """Keys that get no gradient, and the batch statistics of their encoder.

    Attributes:
      keys: f32[B, D], one array for each direction of the look-up.
      batch_stats: after encoding them.
    """

    keys: list[jax.Array]
    batch_stats: Any


class Encoded(NamedTuple):
    """The queries and keys of a step, one array f32[B, D] for each direction of the look-up.

    `pixel_losses` has an array f32[B] for each masked view.
    """

    queries: list[jax.Array]
    keys: list[jax.Array]
    batch_stats: Any
    key_batch_stats: Any
    pixel_losses: Sequence[jax.Array] = ()


class KeyEncoder(Protocol):
    """The interface of a key encoder; `state` is a TrainState."""

    def init_key_params(self, variables: Any) -> Any:
        """Returns the key encoder's variables at step 0, given those of the query encoder."""
        ...

    def trainable(self, params: Any, key_params: Any) -> Any:
        """Returns the pytree of parameters that the optimizer updates."""
        ...

    def follow(self, key_params: Any, params: Any, step: jax.Array) -> Any:
        """Returns the key parameters of this step i32[], before any image is encoded."""
        ...

    def encode_fixed_keys(
        self, key_params: Any, batch_stats: Any, views: Views
    ) -> FixedKeys | None:
        """Returns keys that are computed outside the gradient; None if there are none."""
        ...

    def encode(
        self,
        trainable: Any,
        fixed: FixedKeys | None,
        state: Any,
        query_views: Views,
        key_views: Views,
    ) -> Encoded:
        """Returns queries and keys, inside the gradient."""
        ...

    def split(self, trainable: Any, key_params: Any) -> tuple[Any, Any]:
        """Returns the params and key_params of the next state."""
        ...


@dataclasses.dataclass(frozen=True)
class Momentum:
    """MoCo's key encoder: an EMA of the query encoder that gets no gradient (MoCo, eq. 2).

    The EMA covers parameters only, without those of a predictor. Each encoder keeps its own batch
    statistics, as in the reference.
    """

    encoders: Encoders
    rate: Callable[[jax.Array], Any]  # see `momentum_rate`
    reverses: bool = False  # encodes the views of the keys from the last to the first

    def init_key_params(self, variables):
        return of_keys(variables)

    def trainable(self, params, key_params):
        return params

    def follow(self, key_params, params, step):
        own = of_keys(params)
        return optax.incremental_update(own, key_params, step_size=self.rate(step))

    def encode_fixed_keys(self, key_params, batch_stats, views):
        order = -1 if self.reverses else 1
        keys, batch_stats, _ = self.encoders.keys(key_params, batch_stats, views[::order])
        return FixedKeys([jax.lax.stop_gradient(k) for k in keys[::order]], batch_stats)

    def encode(self, trainable, fixed, state, query_views, key_views):
        queries, batch_stats, losses = self.encoders.queries(
            trainable, state.batch_stats, query_views
        )
        return Encoded(queries, fixed.keys, batch_stats, fixed.batch_stats, losses)

    def split(self, trainable, key_params):
        return trainable, key_params


@dataclasses.dataclass(frozen=True)
class EndToEnd:
    """Two encoders without common parameters, both trained by gradient (MoCo, fig. 2a)."""

    encoders: Encoders

    def init_key_params(self, variables):
        return variables

    def trainable(self, params, key_params):
        return params, key_params

    def follow(self, key_params, params, step):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        params, key_params = trainable
        queries, batch_stats, _ = self.encoders.queries(params, state.batch_stats, query_views)
        keys, key_stats, _ = self.encoders.keys(key_params, state.key_batch_stats, key_views)
        return Encoded(queries, keys, batch_stats, key_stats)

    def split(self, trainable, key_params):
        return trainable


@dataclasses.dataclass(frozen=True)
class Shared:
    """One encoder for both views, as in SimCLR (Chen et al. 2020).

    Batch norm sees each view apart; the batch norm of the reference sees both together.
    """

    encoders: Encoders

    def init_key_params(self, variables):
        return {}

    def trainable(self, params, key_params):
        return params

    def follow(self, key_params, params, step):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        # Each view is encoded once, in one or in both directions of the look-up.
        first, batch_stats, _ = self.encoders.queries(trainable, state.batch_stats, query_views[:1])
        second, batch_stats, _ = self.encoders.keys(trainable, batch_stats, key_views[:1])
        directions = len(query_views)
        queries, keys = (first + second)[:directions], (second + first)[:directions]
        return Encoded(queries, keys, batch_stats, {})

    def split(self, trainable, key_params):
        return trainable, {}


@dataclasses.dataclass(frozen=True)
class QueriesAsKeys:
    """No key encoder: a memory bank stores the queries themselves (MoCo, fig. 2b).

    A masked autoencoder has no keys at all.
    """

    encoders: Encoders

    def init_key_params(self, variables):
        return {}

    def trainable(self, params, key_params):
        return params

    def follow(self, key_params, params, step):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        queries, batch_stats, losses = self.encoders.queries(
            trainable, state.batch_stats, query_views
        )
        keys = [jax.lax.stop_gradient(q) for q in queries]
        return Encoded(queries, keys, batch_stats, {}, losses)

    def split(self, trainable, key_params):
        return trainable, {}


# The values of `config.momentum_schedule`: (progress f[], 0 to 1, and 1 - m at its start) -> 1 - m.
MOMENTUM_SCHEDULES: dict[str, Callable[[Any, float], Any]] = {
    "constant": lambda progress, first: first,
    "cosine": lambda progress, first: first * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}


def momentum_rate(config: ConfigDict, steps: int) -> Callable[[Any], Any]:
    """Returns step -> 1 - m, the weight of the query encoder in the EMA, of a run of `steps` steps.

    The cosine of MoCo v3 raises m from `config.momentum` to 1.
    """
    schedule = MOMENTUM_SCHEDULES[config.momentum_schedule]

    def rate(step):
        progress = jnp.asarray(step, jnp.result_type(float)) / steps
        return schedule(jnp.minimum(progress, 1.0), 1.0 - config.momentum)

    return rate


def _momentum(encoders: Encoders, config: ConfigDict, steps: int) -> Momentum:
    # The running statistics depend on the order of the views. MoCo v3 encodes the first view first,
    # the symmetric CIFAR-10 demo, which has a queue, the second: the key of the first query.
    return Momentum(encoders, momentum_rate(config, steps), config.dictionary == "in_batch")


KEY_ENCODERS = {
    "momentum": _momentum,
    "trained": lambda encoders, *_: EndToEnd(encoders),
    "shared": lambda encoders, *_: Shared(encoders),
    "none": lambda encoders, *_: QueriesAsKeys(encoders),
}


def make_key_encoder(
    config: ConfigDict, encoder: Encoder, layout: Layout, steps: int
) -> KeyEncoder:
    """Returns the key encoder of a validated config, for a run of this many steps."""
    return KEY_ENCODERS[config.key_encoder](make_encoders(config, encoder, layout), config, steps)
