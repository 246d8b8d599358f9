"""The pretext tasks by name, and what a config needs of each."""

import copy
from typing import Any

from ml_collections import ConfigDict

# The values of `config.pretext`, with the parts of the loss.
PRETEXTS: dict[str, tuple[str, ...]] = {
    "contrastive": ("contrastive",),
    "masked": ("masked",),
    "both": ("contrastive", "masked"),
}


def loss_weights(config: Any) -> dict[str, float]:
    """Returns the parts of the loss with their weights; a weight of 0 leaves its part out.

    Args:
      config: its pretext is contrastive if it has no such key, as in older checkpoints, or an
        unknown value, which validation refuses.
    """
    names = PRETEXTS.get(config.get("pretext"), ("contrastive",))
    if len(names) == 1:
        return {names[0]: 1.0}
    return {name: weight for name in names if (weight := config[f"{name}_weight"])}


def contrasts(config: Any) -> bool:
    """Returns whether the pretext looks keys up in a dictionary."""
    return "contrastive" in loss_weights(config)


def masks(config: Any) -> bool:
    """Returns whether the pretext masks patches of the queries' images."""
    return "masked" in loss_weights(config)


def effective(config: ConfigDict) -> ConfigDict:
    """Returns the config with the values that its pretext reads.

    Without keys there is one view, no dictionary and no key encoder, whatever the config says.
    """
    if contrasts(config):
        return config
    config = copy.deepcopy(config)
    config.key_encoder, config.dictionary, config.symmetric = "none", "in_batch", False
    config.views = tuple(config.views)[:1]
    return config
