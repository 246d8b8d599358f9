"""The dictionaries, by name: where a query's negatives come from."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.config import keys_per_step
from moco_jax.contrastive.dictionaries import in_batch, memory_bank, queue
from moco_jax.contrastive.dictionaries.memory_bank import Batch
from moco_jax.contrastive.info_nce import Contrast, info_nce
from moco_jax.parallel.mesh import Layout


class Dictionary(NamedTuple):
    """What the train step asks of a dictionary; its entries are a pytree in the train state."""

    init: Callable[[jax.Array], Any]  # PRNG key -> entries
    shardings: Any  # of the entries, as a pytree like them
    look_up: Callable[[jax.Array, jax.Array, Any, Batch], Contrast]  # queries, keys [B, D], entries
    update: Callable[[Any, jax.Array, Batch], Any]  # entries, keys [N, D] -> entries
    reach: Callable[[int], int]  # steps done -> how many of the last steps' keys are all there
    recall: Callable[[Any, Batch], jax.Array]  # entries -> the keys [N, D] of a step within reach


def _queue(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    """MoCo's: the keys of the last steps."""
    look_up = functools.partial(info_nce, temperature=config.temperature, layout=layout)
    return Dictionary(
        init=functools.partial(
            queue.init,
            queue_size=config.queue_size,
            keys_per_step=keys_per_step(config),
            dim=config.model.dim,
            dtype=config.queue_dtype,
        ),
        shardings=layout.sharded(axis=1),
        look_up=lambda queries, keys, ring, batch: look_up(queries, keys, ring),
        update=lambda ring, keys, batch: queue.enqueue(ring, keys, batch.step),
        reach=lambda done: min(done, config.queue_size // keys_per_step(config)),
        recall=lambda ring, batch: ring[batch.step % len(ring)],
    )


def _in_batch(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
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
        look_up=lambda queries, keys, entries, batch: look_up(queries, keys),
        update=lambda entries, keys, batch: entries,
        reach=lambda done: 0,
        recall=lambda entries, batch: entries,
    )


def _memory_bank(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    """Old features of all images (Wu et al. 2018)."""
    return BANK_LOSSES[config.bank.loss](config, layout, images)


def _bank_info_nce(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    look_up = functools.partial(memory_bank.look_up, **_bank_options(config, layout, images))
    return Dictionary(
        init=_bank_init(config, images),
        shardings=layout.sharded(),
        look_up=lambda queries, keys, features, batch: look_up(queries, features, batch),
        update=lambda features, keys, batch: memory_bank.mix(
            features, keys, batch.indices, config.bank.momentum
        ),
        reach=_since_epoch_began(config, images),
        recall=lambda features, batch: features[batch.indices],
    )


def _bank_nce(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    options = _bank_options(config, layout, images)
    init = _bank_init(config, images)
    look_up = functools.partial(memory_bank.look_up_nce, **options)
    return Dictionary(
        init=lambda key: memory_bank.Bank(init(key), jnp.zeros(())),
        shardings=memory_bank.Bank(layout.sharded(), layout.replicated),
        look_up=lambda queries, keys, bank, batch: look_up(queries, bank, batch),
        update=functools.partial(memory_bank.update_nce, momentum=config.bank.momentum, **options),
        reach=_since_epoch_began(config, images),
        recall=lambda bank, batch: bank.features[batch.indices],
    )


def _bank_options(config: ConfigDict, layout: Layout, images: int) -> dict[str, Any]:
    sampling = memory_bank.Sampling(config.seed, images, config.bank.negatives)
    return dict(sampling=sampling, temperature=config.temperature, layout=layout)


def _bank_init(config: ConfigDict, images: int) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(
        memory_bank.init, images=images, batch_size=config.batch_size, dim=config.model.dim
    )


def _since_epoch_began(config: ConfigDict, images: int) -> Callable[[int], int]:
    """Returns steps done -> steps of this epoch, in which no image comes twice."""
    per_epoch = images // config.batch_size
    return lambda done: (done - 1) % per_epoch + 1 if done else 0


DICTIONARIES = {"queue": _queue, "in_batch": _in_batch, "memory_bank": _memory_bank}
BANK_LOSSES = {"info_nce": _bank_info_nce, "nce": _bank_nce}


def make_dictionary(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    """Returns the dictionary of a validated config, for a training set of so many images."""
    return DICTIONARIES[config.dictionary](config, layout, images)


def negatives(config: ConfigDict) -> int:
    """Returns how many negatives a query has."""
    counts = {
        "queue": config.queue_size,
        "memory_bank": config.bank.negatives,
        "in_batch": (config.batch_size - 1) * (2 if config.key_encoder == "shared" else 1),
    }
    return counts[config.dictionary]


def chance(config: ConfigDict) -> float:
    """Returns the loss of guessing, summed over the directions."""
    count = negatives(config)
    loss = math.log(count + 1)
    if config.dictionary == "memory_bank" and config.bank.loss == "nce":
        loss += count * math.log1p(1 / count)  # the noise's part
    return loss * (2 if config.symmetric else 1)
