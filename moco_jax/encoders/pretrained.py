"""Reads and writes pretrained encoders: a workdir, a checkpoint or a safetensors file."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.models.encoder import Encoder, make_encoder
from moco_jax.training import checkpoints
from moco_jax.training.flat_config import flatten, unflatten

FORMAT = "moco_jax.encoder"  # of encoder files
PRETRAIN_KIND = "moco_jax.pretrain"  # of checkpoints that hold an encoder


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder and its config.

    Attributes:
      config: of the run that trained it: `model` is the network, `data` how images are prepared.
      variables: `params` and `batch_stats`, nested dicts of host arrays; each has `backbone`, and
        `head` if the encoder has one.
      source: describes the encoder in messages.
    """

    config: ConfigDict
    variables: dict[str, Any]
    source: str

    @property
    def encoder(self) -> Encoder:
        """The module of the variables."""
        return make_encoder(self.config)

    @property
    def has_head(self) -> bool:
        """Whether there is a projection head, so that `Encoder.projection` works."""
        return "head" in self.variables["params"]

    def check_output(self, output: str) -> None:
        """Raises a ValueError if the output is 'head' and there is no head."""
        if output == "head" and not self.has_head:
            raise ValueError(f"{self.source} has no head; allowed: output='backbone'")


def read(path: str | os.PathLike) -> Pretrained:
    """Returns the encoder at a path.

    Args:
      path: a workdir, of which the latest checkpoint is read, its folder `checkpoints/<step>`, or
        a file that `write` or `python -m moco_jax.convert` wrote.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if it is not an encoder; the message says what is allowed.
    """
    where = pathlib.Path(path).expanduser().absolute()
    if not where.exists():
        raise FileNotFoundError(f"there is no encoder at {where}: no such file or folder")
    return _read_file(where) if where.is_file() else _read_folder(where)


def write(path: str | os.PathLike, pretrained: Pretrained) -> None:
    """Writes an encoder as a safetensors file with the config as metadata, for `read`."""
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(pretrained.variables, sep="/"))
    recipe = json.dumps(flatten(pretrained.config))
    about = {"format": FORMAT, "recipe": recipe, "source": pretrained.source}
    safetensors.numpy.save_file(flat, pathlib.Path(path), metadata=about)


def _read_folder(folder: pathlib.Path) -> Pretrained:
    if not (folder / "about").is_dir():
        steps = [p for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
        if not steps:
            raise ValueError(
                f"{folder} holds no checkpoint; allowed: a workdir (with checkpoints/<step>/), one "
                "of its checkpoints, or an encoder's .safetensors"
            )
        folder = max(steps, key=lambda step: int(step.name))
    about, variables = checkpoints.read_encoder(folder, PRETRAIN_KIND)
    config = unflatten(about["recipe"], config_lib.base())
    return Pretrained(config, variables, f"{folder} ({config.name}, step {about['step']})")


def _read_file(file: pathlib.Path) -> Pretrained:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{file} is a safetensors file of format {about.get('format')!r}, not {FORMAT!r}; "
            "`python -m moco_jax.convert` converts weights of other projects"
        )
    variables = flax.traverse_util.unflatten_dict(safetensors.numpy.load_file(file), sep="/")
    config = unflatten(json.loads(about["recipe"]), config_lib.base())
    return Pretrained(config, variables, about["source"])
