"""How the encoder of the keys comes about: it follows, it is trained, shared, or there is none.

Each is a class without state of its own; which one, the config says (`key_encoder`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from moco_jax.contrastive import momentum

Views = Sequence[jax.Array]
# (params, batch_stats, views) -> (unit vectors f32[B, D] of each view, batch_stats)
Encode = Callable[[Any, Any, Views], tuple[list[jax.Array], Any]]


class Encoders(NamedTuple):
    """What encodes a step's views: keys are shuffled for it, queries are not."""

    queries: Encode
    keys: Encode
    momentum: float


class Encoded(NamedTuple):
    """A step's queries and keys, one of each for every direction of the look-up."""

    queries: list[jax.Array]
    keys: list[jax.Array]
    batch_stats: Any
    key_batch_stats: Any


class KeyEncoder(Protocol):
    """What the train step asks of it; `state` is a TrainState, or has its parameters."""

    def own(self, variables: Any) -> Any:
        """Returns what the key encoder holds at the start, given what the query encoder holds."""
        ...

    def trained(self, params: Any, key_params: Any) -> Any:
        """Returns the pytree of parameters that the gradient reaches."""
        ...

    def prepare(self, state: Any, key_views: Views, encoders: Encoders) -> Any:
        """Returns what is computed before the gradient, and without one."""
        ...

    def encode(
        self,
        trained: Any,
        prepared: Any,
        state: Any,
        query_views: Views,
        key_views: Views,
        encoders: Encoders,
    ) -> Encoded:
        """Returns queries and keys, inside the gradient."""
        ...

    def parameters(self, trained: Any, prepared: Any) -> tuple[Any, Any]:
        """Returns the next params and key_params."""
        ...


class Momentum:
    """MoCo's: an EMA of the query encoder, through which no gradient passes (eq. 2)."""

    def own(self, variables):
        return variables

    def trained(self, params, key_params):
        return params

    def prepare(self, state, key_views, encoders):
        # The EMA precedes the keys, as in the paper's algorithm 1.
        key_params = momentum.update(state.key_params, state.params, encoders.momentum)
        keys, batch_stats = encoders.keys(key_params, state.key_batch_stats, key_views)
        return key_params, [jax.lax.stop_gradient(k) for k in keys], batch_stats

    def encode(self, trained, prepared, state, query_views, key_views, encoders):
        _, keys, key_batch_stats = prepared
        queries, batch_stats = encoders.queries(trained, state.batch_stats, query_views)
        return Encoded(queries, keys, batch_stats, key_batch_stats)

    def parameters(self, trained, prepared):
        key_params, _, _ = prepared
        return trained, key_params


class Trained:
    """End-to-end: two encoders that share no parameters, both reached by the gradient (fig. 2a)."""

    def own(self, variables):
        return variables

    def trained(self, params, key_params):
        return params, key_params

    def prepare(self, state, key_views, encoders):
        return None

    def encode(self, trained, prepared, state, query_views, key_views, encoders):
        params, key_params = trained
        queries, batch_stats = encoders.queries(params, state.batch_stats, query_views)
        keys, key_batch_stats = encoders.keys(key_params, state.key_batch_stats, key_views)
        return Encoded(queries, keys, batch_stats, key_batch_stats)

    def parameters(self, trained, prepared):
        return trained


class Shared:
    """SimCLR's: one encoder for both views (Chen et al. 2020).

    Batch norm sees each view apart, where the reference's sees both together.
    """

    def own(self, variables):
        return {}

    def trained(self, params, key_params):
        return params

    def prepare(self, state, key_views, encoders):
        return None

    def encode(self, trained, prepared, state, query_views, key_views, encoders):
        # Each view is encoded once, whichever directions are looked up.
        first, batch_stats = encoders.queries(trained, state.batch_stats, query_views[:1])
        second, batch_stats = encoders.keys(trained, batch_stats, key_views[:1])
        directions = len(query_views)
        queries, keys = (first + second)[:directions], (second + first)[:directions]
        return Encoded(queries, keys, batch_stats, {})

    def parameters(self, trained, prepared):
        return trained, {}


class Absent:
    """A memory bank's: what the dictionary takes in are the queries themselves (fig. 2b)."""

    def own(self, variables):
        return {}

    def trained(self, params, key_params):
        return params

    def prepare(self, state, key_views, encoders):
        return None

    def encode(self, trained, prepared, state, query_views, key_views, encoders):
        queries, batch_stats = encoders.queries(trained, state.batch_stats, query_views)
        return Encoded(queries, [jax.lax.stop_gradient(q) for q in queries], batch_stats, {})

    def parameters(self, trained, prepared):
        return trained, {}


KEY_ENCODERS: dict[str, KeyEncoder] = {
    "momentum": Momentum(),
    "trained": Trained(),
    "shared": Shared(),
    "none": Absent(),
}
