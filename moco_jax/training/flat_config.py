"""Configs as flat dicts of plain values, for comparison and for JSON."""

from typing import Any

from ml_collections import ConfigDict

from moco_jax.terminal import renamed


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"model.name": "resnet50", ...} with values as in JSON: tuples become lists."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _plain(value)
    return flat


def unflatten(flat: dict[str, Any], base: ConfigDict) -> ConfigDict:
    """Returns the base config with the values that `flatten` returned, possibly from JSON.

    Keys that the base does not have are dropped. Keys that `flat` does not have keep the value of
    the base. Keys of earlier versions are read. The base is changed in place.
    """
    known = flatten(base)
    # Not `update`: optional keys have no value to update, and views change their length.
    for key, value in with_current_keys(flat).items():
        if key not in known or value is None:
            continue
        *folders, name = key.split(".")
        holder: Any = base
        for folder in folders:
            holder = holder[folder]
        holder[name] = _frozen(value)
    return base


def with_current_keys(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns a flat config of any version with the keys of this version."""
    flat = {renamed.KEYS.get(key, key): value for key, value in flat.items()}
    # Before the key existed, no image was turned; the base config would say otherwise.
    older = {"data.exif_orientation": False} if "data.canvas" in flat else {}
    return older | flat


def _frozen(value):
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    return value


def _plain(value):
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    return value
