"""The start of a supervised task: a backbone, and the preparation of images in its pretraining."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax import config as pretraining
from moco_jax.encoders import pretrained
from moco_jax.models import backbones
from moco_jax.models.backbones import BACKBONES, Backbone, make_backbone
from moco_jax.models.positions import sincos
from moco_jax.supervised import validation
from moco_jax.supervised.config import downstream
from moco_jax.terminal import command_line
from moco_jax.training import checks
from moco_jax.training.compilation import FAST_COMPILE
from moco_jax.training.integrity import checksums
from moco_jax.training.task import Content


@dataclasses.dataclass(frozen=True)
class Start:
    """A backbone and its weights.

    Attributes:
      config: of the task, with the encoder's values filled in.
      backbone: images [B, S, S, 3] to features f32[B, F].
      params: of the backbone, host arrays.
      batch_stats: of the backbone, host arrays.
      notes: lines that describe it.
      content: its identity, which a resumed run compares; None if fine-tuning begins from scratch.
    """

    config: ConfigDict
    backbone: Backbone
    params: Any
    batch_stats: Any
    notes: tuple[str, ...]
    content: Content | None

    @property
    def variables(self) -> dict[str, Any]:
        """`params` and `batch_stats` of the backbone, host arrays."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def begin(
    config: ConfigDict, prepare: Callable[[ConfigDict, ConfigDict], list[str]] | None = None
) -> Start:
    """Returns the start of a validated config.

    Args:
      prepare: (config, config of the encoder) -> lines to print; fills in how images are prepared
        where the config leaves it to the encoder. Default `prepare_squares`.

    Raises:
      OSError: if `config.pretrained` does not exist.
      ValueError: if it is not an encoder, or does not fit the config's images.
    """
    with command_line.naming(f"--config.pretrained={config.pretrained}"):
        read = pretrained.read(config.pretrained) if config.pretrained else None
    origin = read.config if read else pretraining.base()
    known = origin.model.positions
    config = copy.deepcopy(config)
    replaced = _take_model(config, origin) if read else []
    origin.model.update({key: config.model[key] for key in config.model if key in origin.model})
    notes = (prepare or prepare_squares)(config, origin)
    backbone = _backbone(config, origin)
    if read is None or config.from_scratch:
        source = f"random weights of a {config.model.name}, seed {config.seed}"
        variables = _random(backbone, config)
    else:
        source = f"pretrained: {read.source}"
        variables = {name: tree.get("backbone", {}) for name, tree in read.variables.items()}
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    content = None
    if read and not config.from_scratch:
        content = Content(read.source, checksums.fingerprint(variables))
        params = _adapted(params, config, backbone, known)
    elif config.task == "linear":  # random weights differ by rounding between platforms
        content = Content(source, source)
    return Start(config, backbone, params, batch_stats, (source, *replaced, *notes), content)


def _take_model(config: ConfigDict, origin: ConfigDict) -> list[str]:
    """Fills in the encoder's network; returns a line about each other value that was given.

    A ViT may have another `pool`, which changes no parameters, and learned positions.
    """
    family, notes = BACKBONES[origin.model.name], []
    defaults = {**family.keys, **downstream(config.task).model}
    for key in [key for key in config.model if key in origin.model]:
        given, known = config.model[key], origin.model[key]
        if given not in (defaults.get(key), known):
            free = key == "pool" or (key, given) == ("positions", "learned")
            if free and key in family.keys:
                notes.append(f"model.{key} is {given} here; the encoder was trained with {known}")
                continue
            notes.append(f"model.{key}={given} has no effect: the encoder has {known}")
        config.model[key] = known
    return notes


def prepare_squares(config: ConfigDict, origin: ConfigDict) -> list[str]:
    """Fills in how images are cropped to squares; returns lines to print."""
    data, known = config.data, origin.data
    if not data.eval_resize:
        size = data.image_size or known.image_size
        data.eval_resize = round(size * known.eval_resize / known.image_size)
    notes = fill_data(config, origin, ("image_size", "mean", "std"))
    size, whole = data.image_size, data.eval_resize
    central = f"evaluation uses the central {size} of {whole}; " if whole != size else ""
    notes.append(
        f"images of {size} pixels; {central}mean {tuple(data.mean)}, std {tuple(data.std)}"
    )
    validation.check_data(data)
    checks.fail_on(backbones.problems(config.model, data.image_size))
    return notes


def fill_data(config: ConfigDict, origin: ConfigDict, keys: Sequence[str]) -> list[str]:
    """Fills in empty keys of `data`; returns lines about keys that differ from the encoder's."""
    notes = []
    for key in keys:
        if not config.data[key]:
            config.data[key] = origin.data[key]
        elif config.pretrained and config.data[key] != origin.data[key]:
            notes.append(
                f"data.{key} is {config.data[key]} here; the encoder was trained with "
                f"{origin.data[key]}"
            )
    return notes


def _backbone(config: ConfigDict, origin: ConfigDict) -> Backbone:
    """Returns the encoder's backbone with the task's own values of what it may choose, no remat."""
    model = origin.model.to_dict() | {"freeze_patch": False}
    model |= {key: value for key, value in config.model.items() if key not in origin.model}
    return make_backbone(
        ConfigDict(model), bn_groups=config.bn_groups, dtype=jnp.dtype(config.dtype)
    )


def _adapted(params: Any, config: ConfigDict, backbone: Any, known: str) -> Any:
    """Returns an encoder's parameters with those that fine-tuning adds or starts anew.

    Args:
      known: the encoder's `model.positions`.
    """
    if config.model.get("positions") == "learned" and known != "learned":
        side, dim = config.data.image_size // backbone.patch, backbone.features
        table = np.asarray(sincos(side, side, dim, columns_first=known == "sincos_mae"))
        params = params | {"positions": np.pad(table, ((1, 0), (0, 0)))[None]}
    if config.get("fresh_norm"):
        one = np.ones(backbone.features, np.float32)
        params = params | {"norm": {"scale": one, "bias": 0 * one}}
    return params


def _random(backbone: Backbone, config: ConfigDict) -> dict[str, Any]:
    """Returns random variables on the host, the same on all processes."""
    size = config.data.image_size
    images = jnp.zeros((config.bn_groups, size, size, 3), backbone.dtype)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    draw = jax.jit(functools.partial(backbone.init, train=False), compiler_options=FAST_COMPILE)
    return jax.tree.map(np.asarray, draw(key, images))
