"""The dictionaries by name: where the negatives of a query come from."""

from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.dictionary import Dictionary, StepIndices
from moco_jax.contrastive.dictionaries.in_batch import InBatch
from moco_jax.contrastive.dictionaries.memory_bank import MemoryBank, MemoryBankNCE
from moco_jax.contrastive.dictionaries.queue import Queue
from moco_jax.parallel.mesh import Layout

__all__ = ["BANK_LOSSES", "DICTIONARIES", "Dictionary", "StepIndices", "make_dictionary"]

BANK_LOSSES = {"info_nce": MemoryBank, "nce": MemoryBankNCE}
DICTIONARIES = {
    "queue": Queue,
    "in_batch": InBatch,
    "memory_bank": lambda config, *rest: BANK_LOSSES[config.bank.loss](config, *rest),
}


def make_dictionary(config: ConfigDict, layout: Layout, images: int) -> Dictionary:
    """Returns the dictionary of a validated config, for a training set of this many images."""
    return DICTIONARIES[config.dictionary](config, layout, images)
