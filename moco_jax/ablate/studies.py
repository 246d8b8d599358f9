"""The studies by name; each derives variants of a config that differ in one knob of the paper."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.queue import keys_per_step

Changes = dict[str, Any]  # of a flat config


class Variant(NamedTuple):
    """A config with one value of the knob; the label is its name in tables and folders."""

    label: str
    config: ConfigDict


class Study(NamedTuple):
    """A knob and its variants."""

    knob: str  # title of the knob in tables and axes
    # (config, values) -> (label, changes of the config) of each variant. Values are text; () uses
    # the study's default values.
    variants: Callable[[ConfigDict, Sequence[str]], list[tuple[str, Changes]]]


def _numbers(key: str, kind: type, default: Callable[[ConfigDict], Sequence[Any]]):
    """Returns the function of `Study.variants` for a config key with numbers as values."""

    def variants(config: ConfigDict, values: Sequence[str]) -> list[tuple[str, Changes]]:
        try:
            chosen = [kind(value) for value in values] or default(config)
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"--values of {key} must be {what}, got {','.join(values)}") from None
        return [(str(value), {key: value}) for value in chosen]

    return variants


def _named(make: Callable[[ConfigDict], dict[str, Changes]]):
    """Returns the function of `Study.variants` for settings with names; `values` selects names."""

    def variants(config: ConfigDict, values: Sequence[str]) -> list[tuple[str, Changes]]:
        known = make(config)
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(f"unknown --values={unknown[0]}; allowed: {', '.join(known)}")
        return [(name, known[name]) for name in values or known]

    return variants


def _mechanisms(config: ConfigDict) -> dict[str, Changes]:
    """Returns the mechanisms of MoCo, fig. 2 and 3, with K negatives each.

    All have the same batches, steps and learning rate, NCE too. The end-to-end mechanism has only
    its batch's negatives.
    """
    if config.symmetric or len(config.views) != 2:
        raise ValueError(
            "--study=dictionary needs symmetric=False and two views; got "
            f"symmetric={config.symmetric}, {len(config.views)} views"
        )
    bank = {
        "dictionary": "memory_bank",
        "key_encoder": "none",
        "bank.negatives": config.queue_size,
        "views": tuple(config.views[:1]),
    }
    return {
        "moco": {"dictionary": "queue", "key_encoder": "momentum"},
        "end_to_end": {"dictionary": "in_batch", "key_encoder": "trained"},
        "memory_bank": bank | {"bank.loss": "info_nce"},
        "memory_bank_nce": bank | {"bank.loss": "nce"},
    }


def _shuffling(config: ConfigDict) -> dict[str, Changes]:
    """Returns shuffling on and off (MoCo, sec. A.9), and one group for the whole batch."""
    if config.bn_groups == 1 or config.key_encoder == "none":
        raise ValueError(
            "--study=shuffle_bn needs bn_groups above 1 and a key encoder; got "
            f"bn_groups={config.bn_groups}, key_encoder={config.key_encoder!r}"
        )
    return {
        "shuffled": {"shuffle_bn": True},
        "not_shuffled": {"shuffle_bn": False},
        "one_group": {"shuffle_bn": False, "bn_groups": 1},
    }


def _queue_sizes(config: ConfigDict) -> list[int]:
    """Returns queue sizes (MoCo, fig. 3): one step's keys, then times 4, up to 4x the config's."""
    sizes = (keys_per_step(config) * 4**n for n in itertools.count())
    return list(itertools.takewhile(lambda size: size <= 4 * config.queue_size, sizes))


STUDIES = {
    # MoCo, sec. 4.1; the paper says that 0, no momentum, fails.
    "momentum": Study(
        "momentum m", _numbers("momentum", float, lambda config: (0.0, 0.9, 0.99, 0.999, 0.9999))
    ),
    "dictionary": Study("mechanism", _named(_mechanisms)),
    "shuffle_bn": Study("shuffled batch norm", _named(_shuffling)),
    "queue_size": Study("queue size K", _numbers("queue_size", int, _queue_sizes)),
    "temperature": Study(
        "temperature T", _numbers("temperature", float, lambda config: (0.07, 0.1, 0.2, 0.5))
    ),
    # MoCo v2, table 1.
    "head": Study(
        "projection head",
        _named(lambda config: {name: {"model.head": name} for name in ("linear", "mlp")}),
    ),
}


def variants(study: str, config: ConfigDict, values: Sequence[str] = ()) -> list[Variant]:
    """Returns the variants of a study.

    Args:
      study: one of `STUDIES`.
      config: base of all variants.
      values: of the knob, as text; () uses the study's default values.

    Raises:
      ValueError: for an unknown study or value, or a config that the study can't vary.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown --study={study}; allowed: {', '.join(STUDIES)}")
    if config.get("task") != "pretrain":
        raise ValueError(
            f"an ablation needs task='pretrain' in --config, got {config.get('task')!r}"
        )
    needed = {"momentum": ("key_encoder", "momentum"), "queue_size": ("dictionary", "queue")}
    key, value = needed.get(study, ("task", "pretrain"))
    if config[key] != value:
        raise ValueError(f"--study={study} needs {key}={value!r}, got {config[key]!r}")
    found = []
    for label, changes in STUDIES[study].variants(config, values):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        found.append(Variant(label, changed))
    labels = [variant.label for variant in found]
    if len(set(labels)) < len(labels):
        raise ValueError(f"--values has a value twice: {', '.join(labels)}")
    return found
