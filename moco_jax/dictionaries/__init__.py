"""The dictionaries, by name: where a query's negatives come from."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from moco_jax.config import keys_per_step
from moco_jax.contrast import Contrast, info_nce
from moco_jax.dictionaries import in_batch, queue
from moco_jax.mesh import Layout


class Dictionary(NamedTuple):
    """What the train step asks of a dictionary; its entries are a pytree in the train state."""

    init: Callable[[jax.Array], Any]  # PRNG key -> entries
    shardings: Any  # of the entries, as a pytree like them
    look_up: Callable[[jax.Array, jax.Array, Any], Contrast]  # queries, keys [B, D], entries
    update: Callable[[Any, jax.Array, jax.Array], Any]  # entries, keys [N, D], step -> entries


def _queue(config: ConfigDict, layout: Layout) -> Dictionary:
    """MoCo's: the keys of the last steps."""
    return Dictionary(
        init=functools.partial(
            queue.init,
            queue_size=config.queue_size,
            keys_per_step=keys_per_step(config),
            dim=config.model.dim,
            dtype=config.queue_dtype,
        ),
        shardings=layout.sharded(axis=1),
        look_up=functools.partial(info_nce, temperature=config.temperature, layout=layout),
        update=queue.enqueue,
    )


def _in_batch(config: ConfigDict, layout: Layout) -> Dictionary:
    """The other keys of the batch."""
    look_up = functools.partial(
        in_batch.contrast,
        temperature=config.temperature,
        own_view=config.key_encoder == "shared",
        layout=layout,
    )
    return Dictionary(
        init=lambda key: (),
        shardings=(),
        look_up=lambda queries, keys, entries: look_up(queries, keys),
        update=lambda entries, keys, step: entries,
    )


DICTIONARIES = {"queue": _queue, "in_batch": _in_batch}


def make_dictionary(config: ConfigDict, layout: Layout) -> Dictionary:
    """Returns the dictionary of a validated config."""
    return DICTIONARIES[config.dictionary](config, layout)


def negatives(config: ConfigDict) -> int:
    """Returns how many negatives a query has."""
    if config.dictionary == "queue":
        return config.queue_size
    return (config.batch_size - 1) * (2 if config.key_encoder == "shared" else 1)
