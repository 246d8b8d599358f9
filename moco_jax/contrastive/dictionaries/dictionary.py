"""The interface of a dictionary."""

from typing import Any, NamedTuple, Protocol

import jax

from moco_jax.contrastive.info_nce import Contrast


class StepIndices(NamedTuple):
    """Identifies a batch: the step i32[] and the indices of its images, i32[B]."""

    step: jax.Array
    indices: jax.Array


class Dictionary(Protocol):
    """Supplies the negatives of a query. Its entries are a pytree in the train state.

    Attributes:
      shardings: of the entries, a pytree with the structure of the entries.
      num_negatives: K, the negatives of a query.
      chance_loss: the loss of guessing, for one direction of the look-up.
    """

    @property
    def shardings(self) -> Any: ...

    @property
    def num_negatives(self) -> int: ...

    @property
    def chance_loss(self) -> float: ...

    def init(self, key: jax.Array) -> Any:
        """Returns the entries at step 0, drawn with a PRNG key."""
        ...

    def look_up(
        self, queries: jax.Array, keys: jax.Array, entries: Any, batch: StepIndices
    ) -> Contrast:
        """Returns the loss of queries f32[B, D] against their keys f32[B, D] and the entries."""
        ...

    def update(self, entries: Any, keys: jax.Array, batch: StepIndices) -> Any:
        """Returns the entries after a step with the keys f32[N, D]."""
        ...

    def reach(self, steps: int) -> int:
        """Returns how many of the last steps, `steps` done so far, have all keys in the entries."""
        ...

    def recall(self, entries: Any, batch: StepIndices) -> jax.Array:
        """Returns the keys [N, D] of a step within reach."""
        ...
