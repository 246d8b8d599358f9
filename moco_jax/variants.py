"""Variants of an experiment file: named sets of changes to its config."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.terminal.paths import parts


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
        known = ", ".join(["no variant", *variants])
        raise ValueError(f"the variant {name!r} is unknown; allowed: {known}")
    config.name = f"{config.name}_{name}"
    config.update_from_flattened_dict(dict(variants[name]))


def of_path(argument: str, variants: Sequence[str]) -> tuple[str, str]:
    """Returns the path and the variant of `PATH` or `PATH,VARIANT`; '' without a variant.

    A path with a comma counts as it is if there is such a file or folder.

    Raises:
      ValueError: there is the path before the comma, but the variant is unknown.
    """
    path, comma, variant = argument.rpartition(",")
    if not comma or os.path.exists(os.path.expanduser(argument)):
        return argument, ""
    if variant in variants:
        return path, variant
    if os.path.exists(os.path.expanduser(path)):
        raise ValueError(
            f"{argument}: there is no such file or folder, and {variant!r} is no variant; "
            f"allowed: {', '.join(f'{path},{known}' for known in variants)}"
        )
    return argument, ""


def name_of(path: str) -> str:
    """Returns the part of an experiment's name that stands for the images at a path."""
    names = [pathlib.Path(part).absolute().name for part in parts(path)]
    return re.sub(r"\W+", "_", "_".join(names)).strip("_")
