"""The key encoders by name: an EMA of the query encoder, a trained one, a shared one, or none."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.encoding import Encoders, Views, make_encoders
from moco_jax.models.encoder import Encoder, without_predictor
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
    """The queries and keys of a step, one array f32[B, D] for each direction of the look-up."""

    queries: list[jax.Array]
    keys: list[jax.Array]
    batch_stats: Any
    key_batch_stats: Any


class KeyEncoder(Protocol):
    """The interface of a key encoder; `state` is a TrainState."""

    def init_key_params(self, variables: Any) -> Any:
        """Returns the key encoder's variables at step 0, given those of the query encoder."""
        ...

    def trainable(self, params: Any, key_params: Any) -> Any:
        """Returns the pytree of parameters that the optimizer updates."""
        ...

    def follow(self, key_params: Any, params: Any) -> Any:
        """Returns the key parameters of this step, before any image is encoded."""
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
    momentum: float

    def init_key_params(self, variables):
        return without_predictor(variables)

    def trainable(self, params, key_params):
        return params

    def follow(self, key_params, params):
        own = without_predictor(params)
        return optax.incremental_update(own, key_params, step_size=1.0 - self.momentum)

    def encode_fixed_keys(self, key_params, batch_stats, views):
        keys, batch_stats = self.encoders.keys(key_params, batch_stats, views)
        return FixedKeys([jax.lax.stop_gradient(k) for k in keys], batch_stats)

    def encode(self, trainable, fixed, state, query_views, key_views):
        queries, batch_stats = self.encoders.queries(trainable, state.batch_stats, query_views)
        return Encoded(queries, fixed.keys, batch_stats, fixed.batch_stats)

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

    def follow(self, key_params, params):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        params, key_params = trainable
        queries, batch_stats = self.encoders.queries(params, state.batch_stats, query_views)
        keys, key_stats = self.encoders.keys(key_params, state.key_batch_stats, key_views)
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

    def follow(self, key_params, params):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        # Each view is encoded once, in one or in both directions of the look-up.
        first, batch_stats = self.encoders.queries(trainable, state.batch_stats, query_views[:1])
        second, batch_stats = self.encoders.keys(trainable, batch_stats, key_views[:1])
        directions = len(query_views)
        queries, keys = (first + second)[:directions], (second + first)[:directions]
        return Encoded(queries, keys, batch_stats, {})

    def split(self, trainable, key_params):
        return trainable, {}


@dataclasses.dataclass(frozen=True)
class QueriesAsKeys:
    """No key encoder: a memory bank stores the queries themselves (MoCo, fig. 2b)."""

    encoders: Encoders

    def init_key_params(self, variables):
        return {}

    def trainable(self, params, key_params):
        return params

    def follow(self, key_params, params):
        return key_params

    def encode_fixed_keys(self, key_params, batch_stats, views):
        return None

    def encode(self, trainable, fixed, state, query_views, key_views):
        queries, batch_stats = self.encoders.queries(trainable, state.batch_stats, query_views)
        return Encoded(queries, [jax.lax.stop_gradient(q) for q in queries], batch_stats, {})

    def split(self, trainable, key_params):
        return trainable, {}


KEY_ENCODERS = {
    "momentum": lambda encoders, config: Momentum(encoders, config.momentum),
    "trained": lambda encoders, config: EndToEnd(encoders),
    "shared": lambda encoders, config: Shared(encoders),
    "none": lambda encoders, config: QueriesAsKeys(encoders),
}


def make_key_encoder(config: ConfigDict, encoder: Encoder, layout: Layout) -> KeyEncoder:
    """Returns the key encoder of a validated config."""
    return KEY_ENCODERS[config.key_encoder](make_encoders(config, encoder, layout), config)
