"""Variants of an experiment file: named sets of changes to its config."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def apply(config: ConfigDict, variants: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Sets the values of a variant and appends the variant's name to `config.name`.

    Args:
      config: the experiment's config. Its `name` is the name of the file in `configs/`.
      variants: {variant: {key: value}}. A nested key is written with dots: "data.image_size".
      name: the variant.

    Raises:
      ValueError: the variant is unknown. The message lists the known ones.
      KeyError: the config has no such key.
      TypeError: the value has another type than the key's.
    """
    if name not in variants:
        known = ", ".join(variants)
        raise ValueError(f"configs/{config.name}.py:{name} is unknown; allowed: {known}")
    config.name = f"{config.name}_{name}"
    config.update_from_flattened_dict(dict(variants[name]))
