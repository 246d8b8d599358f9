"""The experiments of configs/ with their variants, read from the files, and prepared for a chip."""

import inspect
import pathlib
from typing import Any
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax import configs
from moco_jax.encoders import pretrained
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel.mesh import Layout
from moco_jax.pretraining import fit
from moco_jax.pretraining import validation as pretraining
from moco_jax.segmentation import segment
from moco_jax.supervised import run as supervised
from moco_jax.supervised import start

IMAGES = 1_281_167  # of a training set
BATCH = 64  # most images on a device: a larger batch has more devices
# Most blocks of a ViT, which are all alike: in a step, and in a program without a gradient, whose
# memory does not grow with them. More take longer than a minute to compile.
BLOCKS, FORWARD_BLOCKS = 12, 2


def names() -> list[str]:
    """Returns all experiments with their variants, such as 'imagenet:v2'."""
    return [":".join([name, *filter(None, [x])]) for name in configs.names() for x in _inputs(name)]


def _inputs(name: str) -> list[str]:
    """Returns the arguments of an experiment's `get_config`; '' for none."""
    experiment = getattr(configs, name)
    variants = list(getattr(experiment, "VARIANTS", {}))
    parameters = inspect.signature(experiment.get_config).parameters
    if "path" in parameters:
        return ["/images", *(f"/images,{variant}" for variant in variants)]
    optional = all(x.default == "" for x in parameters.values())
    return ["", *variants] if optional else variants


def config(name: str) -> ConfigDict:
    """Returns the config of an experiment such as 'imagenet:v2'."""
    experiment, _, argument = name.partition(":")
    return getattr(configs, experiment).get_config(*filter(None, [argument]))


def by_task() -> dict[str, list[str]]:
    """Returns the experiments of each task."""
    found: dict[str, list[str]] = {}
    for name in names():
        found.setdefault(config(name).task, []).append(name)
    return found


def pretraining_config(name: str, devices: int, blocks: int = FORWARD_BLOCKS) -> ConfigDict:
    """Returns a pretraining config in bfloat16, for `IMAGES` images and `BATCH` on a device.

    A ViT has at most `blocks` blocks.
    """
    found, _ = fit.fit(config(name), IMAGES, (), devices)
    found.dtype = "bfloat16"
    found.batch_size = min(found.batch_size, BATCH * devices)
    if found.model.stem == "patch":
        found.model.depth = min(blocks, len(make_encoder(found).backbone.blocks))
    pretraining.check(found, devices, warns=False)
    return found


def begun(name: str, layout: Layout, blocks: int = FORWARD_BLOCKS) -> start.Start:
    """Returns the start of a downstream experiment in bfloat16, its encoder all zeros.

    A ViT has at most `blocks` blocks.
    """
    found = supervised.fit_batch(config(name), IMAGES, layout.devices)
    found.dtype = "bfloat16"
    found.batch_size = min(found.batch_size, BATCH * layout.devices)
    prepare = segment._prepare if found.task == "segment" else None
    with mock.patch.object(pretrained, "read", lambda x: _encoder(x, layout.devices, blocks)):
        return start.begin(found, prepare)


def _encoder(workdir: str, devices: int, blocks: int) -> pretrained.Pretrained:
    """Returns the encoder, all zeros, that the experiment with this workdir pretrains."""
    wanted = pathlib.Path(workdir).name
    [name] = [x for x in by_task()["pretrain"] if config(x).name == wanted]
    found = pretraining_config(name, devices, blocks)
    zeros = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape)  # noqa: E731
    return pretrained.Pretrained(found, jax.tree.map(zeros, variables(found)), name)


def variables(found: ConfigDict) -> Any:
    """Returns the abstract variables of a pretraining config's encoder."""
    size = found.data.image_size
    images = jax.ShapeDtypeStruct((2 * found.bn_groups, size, size, 3), found.dtype)
    shapes = jax.eval_shape(make_encoder(found).init, jax.random.key(0), images)
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
