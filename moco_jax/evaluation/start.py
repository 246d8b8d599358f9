"""What a supervised task begins with: a backbone, and pictures prepared as it knows them."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax import config as pretraining
from moco_jax import pretrained
from moco_jax.evaluation import validation
from moco_jax.models.encoder import make_encoder
from moco_jax.models.resnet import ResNet

_FROM_ENCODER = ("image_size", "mean", "std")


@dataclasses.dataclass(frozen=True)
class Start:
    """A backbone and what is known of it.

    Attributes:
      config: of the task, what was left to the encoder filled in.
      backbone: images [B, S, S, 3] to features f32[B, F].
      params: of the backbone, host arrays.
      batch_stats: likewise.
      notes: lines that tell what it is.
    """

    config: ConfigDict
    backbone: ResNet
    params: Any
    batch_stats: Any
    notes: tuple[str, ...]


def begin(config: ConfigDict) -> Start:
    """Returns the start that a validated config asks for.

    Raises:
      FileNotFoundError: if there is no encoder where the config says.
      ValueError: if there is something else, or its pictures and the config's don't go together.
    """
    read = pretrained.read(config.pretrained) if config.pretrained else None
    origin = _own_model(config) if read is None else read.config
    config, notes = _fill(config, origin)
    validation.check_data(config.data)
    backbone = _backbone(config, origin)
    if read is None or config.from_scratch:
        source = f"random weights of a {config.model.name}, seed {config.seed}"
        variables = _random(backbone, config)
    else:
        source = f"pretrained: {read.source}"
        variables = {name: tree["backbone"] for name, tree in read.variables.items()}
    return Start(
        config,
        backbone,
        variables["params"],
        variables.get("batch_stats", {}),
        (source, *notes),
    )


def _own_model(config: ConfigDict) -> ConfigDict:
    """Returns the config of an encoder that is the task's own."""
    origin = pretraining.base()
    origin.model.update({key: config.model[key] for key in config.model})
    return origin


def _fill(config: ConfigDict, origin: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Returns the config with what it leaves to the encoder, and where it differs from that."""
    config, notes = copy.deepcopy(config), []
    for key in config.model:
        config.model[key] = origin.model[key]
    data, known = config.data, origin.data
    if not data.eval_resize:
        size = data.image_size or known.image_size
        data.eval_resize = round(size * known.eval_resize / known.image_size)
    for key in _FROM_ENCODER:
        if not data[key]:
            data[key] = known[key]
        elif config.pretrained and data[key] != known[key]:
            notes.append(f"data.{key} is {data[key]} here; the encoder was trained at {known[key]}")
    notes.append(
        f"pictures of {data.image_size} pixels; evaluated: the central {data.image_size} of "
        f"{data.eval_resize}; mean {tuple(data.mean)}, std {tuple(data.std)}"
    )
    return config, notes


def _backbone(config: ConfigDict, origin: ConfigDict) -> ResNet:
    """Returns the encoder's backbone, for the task's batch-norm groups and dtype."""
    origin = copy.deepcopy(origin)
    origin.bn_groups, origin.dtype = config.bn_groups, config.dtype
    return make_encoder(origin).backbone


def _random(backbone: ResNet, config: ConfigDict) -> dict[str, Any]:
    """Returns freshly drawn variables, on the host: alike on all processes."""
    size = config.data.image_size
    images = jnp.zeros((config.bn_groups, size, size, 3), backbone.dtype)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    # Optimised, drawing all the parameters would take longer to compile than to do.
    draw = jax.jit(
        functools.partial(backbone.init, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return jax.tree.map(np.asarray, draw(key, images))
