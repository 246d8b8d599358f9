"""The kinds of checkpoints that supervised tasks write."""

from moco_jax.supervised.config import BASES, downstream
from moco_jax.training.comparison import IMAGE_PLACES, Kind

_PLACES = ("pretrained", "label_", *IMAGE_PLACES, "data.test_split")
_NETWORK = tuple(f"model.{key}" for key in downstream("").model)  # not what fine-tuning chooses
# A checkpoint without fingerprints, of an earlier version, continues only from the same places.
_STRUCTURE = (*_NETWORK, "pretrained", "from_scratch", "label_", "ema", *IMAGE_PLACES)

KINDS = {
    "linear": Kind(
        "moco_jax.linear",
        structure=(*_STRUCTURE, "lr", "optimizer", "feature_norm"),
        results=("top1",),
        base=BASES["linear"],
        places=_PLACES,
        may_diverge="head",  # one learning rate of a sweep may be too high
    ),
    "finetune": Kind(
        "moco_jax.finetune",
        structure=(*_STRUCTURE, "optimizer"),  # the names of the arrays show learned positions
        results=("top1",),
        base=BASES["finetune"],
        places=_PLACES,
    ),
}
