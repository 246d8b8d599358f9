"""The studies, by name: which runs a knob of the paper makes of one config."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.config import keys_per_step


@dataclasses.dataclass(frozen=True)
class Variant:
    """A setting of the knob.

    Attributes:
      label: how tables name it.
      config: that of its runs.
    """

    label: str
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Study:
    """A knob.

    Attributes:
      knob: what is turned, for tables and axes.
      variants: (config, values) -> the variants; values as text, () for the study's own.
    """

    knob: str
    variants: Callable[[ConfigDict, Sequence[str]], list[Variant]]


def _change(config: ConfigDict, **changes: Any) -> ConfigDict:
    """Returns a copy with these keys changed, `bank__loss=` for nested ones."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return changed


def _numbers(key: str, kind: type, default: Callable[[ConfigDict], Sequence[Any]]):
    """Returns the variants function of a key with numbers as values."""

    def variants(config: ConfigDict, values: Sequence[str]) -> list[Variant]:
        try:
            chosen = [kind(value) for value in values] or list(default(config))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"values {','.join(values)} of {key} must be {what}") from None
        return [Variant(str(value), _change(config, **{key: value})) for value in chosen]

    return variants


def _named(make: Callable[[ConfigDict], dict[str, dict[str, Any]]]):
    """Returns the variants function of named settings, of which `values` choose some."""

    def variants(config: ConfigDict, values: Sequence[str]) -> list[Variant]:
        known = make(config)
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(f"unknown value {unknown[0]!r}; known: {', '.join(known)}")
        return [Variant(name, _change(config, **known[name])) for name in values or known]

    return variants


def _mechanisms(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """MoCo, fig. 2 and 3: where keys come from, as many negatives as the queue has keys.

    All have the same batches, steps and rate, NCE too, and the end-to-end mechanism has what
    its batch has.
    """
    if config.symmetric or len(config.views) != 2:
        raise ValueError("study 'dictionary' compares one direction: symmetric=False, two views")
    bank = dict(
        dictionary="memory_bank",
        key_encoder="none",
        bank__negatives=config.queue_size,
        views=tuple(config.views[:1]),
    )
    return {
        "moco": dict(dictionary="queue", key_encoder="momentum"),
        "end_to_end": dict(dictionary="in_batch", key_encoder="trained"),
        "memory_bank": bank | dict(bank__loss="info_nce"),
        "memory_bank_nce": bank | dict(bank__loss="nce"),
    }


def _shuffling(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """MoCo, sec. A.9, for the config's own mechanism; and one group for the whole batch."""
    if config.bn_groups == 1 or config.key_encoder == "none":
        raise ValueError(
            "study 'shuffle_bn' needs keys to shuffle between batch-norm groups; got bn_groups="
            f"{config.bn_groups}, key_encoder={config.key_encoder!r}"
        )
    return {
        "shuffled": dict(shuffle_bn=True),
        "not_shuffled": dict(shuffle_bn=False),
        "one_group": dict(shuffle_bn=False, bn_groups=1),
    }


def _queue_sizes(config: ConfigDict) -> list[int]:
    """MoCo, fig. 3: from one step's keys to four times the config's, each four times the last."""
    sizes, size = [], keys_per_step(config)
    while size <= 4 * config.queue_size:
        sizes.append(size)
        size *= 4
    return sizes


STUDIES = {
    # MoCo, sec. 4.1, with 0: no momentum at all, which the paper says fails.
    "momentum": Study(
        "momentum m", _numbers("momentum", float, lambda config: (0.0, 0.9, 0.99, 0.999, 0.9999))
    ),
    "dictionary": Study("mechanism", _named(_mechanisms)),
    "shuffle_bn": Study("shuffling batch norm", _named(_shuffling)),
    "queue_size": Study("keys in the queue, K", _numbers("queue_size", int, _queue_sizes)),
    "temperature": Study(
        "temperature T", _numbers("temperature", float, lambda config: (0.07, 0.1, 0.2, 0.5))
    ),
    # MoCo v2, table 1.
    "head": Study(
        "projection head",
        _named(lambda config: {name: dict(model__head=name) for name in ("linear", "mlp")}),
    ),
}


def variants(study: str, config: ConfigDict, values: Sequence[str] = ()) -> list[Variant]:
    """Returns the variants of a study.

    Args:
      study: one of `STUDIES`.
      config: that the study starts from.
      values: of the knob, as text; () for the study's own.

    Raises:
      ValueError: an unknown study or value, or a config that the study can't turn the knob of.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}; known: {', '.join(STUDIES)}")
    if config.get("task") != "pretrain":
        raise ValueError(f"studies are of task='pretrain', got {config.get('task')!r}")
    needed = {"momentum": ("key_encoder", "momentum"), "queue_size": ("dictionary", "queue")}
    key, value = needed.get(study, ("task", "pretrain"))
    if config[key] != value:
        raise ValueError(f"study {study!r} needs {key}={value!r}, got {config[key]!r}")
    found = STUDIES[study].variants(config, values)
    labels = [variant.label for variant in found]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a value is given twice: {', '.join(labels)}")
    return found
