"""The loss of a step: the parts of its pretext by name, weighed and summed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moco_jax.contrastive.dictionaries import Dictionary, StepIndices
from moco_jax.contrastive.key_encoders import Encoded

Metrics = dict[str, jax.Array]
# (code of the batch, entries of the dictionary, the step) -> metrics, with `loss`
Loss = Callable[[Encoded, Any, StepIndices], Metrics]


def make_loss(dictionary: Dictionary, weights: Mapping[str, float], scale: float) -> Loss:
    """Returns the function of a step's loss.

    Args:
      dictionary: of the contrastive part.
      weights: of the parts, `contrastive` and `masked`; see `loss_weights`.
      scale: factor of the contrastive part.
    """

    def contrastive(encoded, entries, batch):
        contrasts = [
            dictionary.look_up(queries, keys, entries, batch)
            for queries, keys in zip(encoded.queries, encoded.keys, strict=True)
        ]
        metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *contrasts)._asdict()
        # The reference sums the loss over the directions.
        return metrics | {"loss": metrics["loss"] * (len(contrasts) * scale)}

    def masked(encoded, entries, batch):
        return {"loss": jnp.stack(encoded.pixel_losses).mean()}

    parts = {"contrastive": contrastive, "masked": masked}

    def loss(encoded, entries, batch):
        found = {name: parts[name](encoded, entries, batch) for name in weights}
        losses = {name: metrics["loss"] for name, metrics in found.items()}
        metrics = {name: value for part in found.values() for name, value in part.items()}
        metrics["loss"] = sum(weights[name] * part for name, part in losses.items())
        if len(losses) > 1:
            metrics |= {f"{name}_loss": part for name, part in losses.items()}
        return metrics

    return loss
