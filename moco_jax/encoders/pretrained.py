"""A pretrained encoder on disk: a run's workdir, one of its checkpoints, or a safetensors file."""

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

FORMAT = "moco_jax.encoder"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder and what must be known to use it.

    Attributes:
      config: of the run that made it: `model` tells the network, `data` how images are prepared.
      variables: `params` and `batch_stats`, nested dicts of host arrays, each with `backbone` and,
        if it has one, `head`.
      source: what it is, for messages.
    """

    config: ConfigDict
    variables: dict[str, Any]
    source: str

    @property
    def encoder(self) -> Encoder:
        """The module that the variables belong to."""
        return make_encoder(self.config)

    @property
    def has_head(self) -> bool:
        """Whether there is a projection head: `Encoder.projection` works."""
        return "head" in self.variables["params"]


def read(path: str | os.PathLike) -> Pretrained:
    """Returns the encoder at a path.

    Args:
      path: a workdir (its latest checkpoint), a folder `checkpoints/<step>` of one, or a file that
        `write` or `python -m moco_jax.convert` wrote.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if there is something else; it says what is allowed.
    """
    where = pathlib.Path(path).expanduser().absolute()
    if not where.exists():
        raise FileNotFoundError(f"there is no encoder at {where}: no such file or folder")
    if where.is_file():
        return _read_file(where)
    return _read_folder(where)


def write(path: str | os.PathLike, pretrained: Pretrained) -> None:
    """Writes an encoder as safetensors, its config as metadata; `read` gives it back."""
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(pretrained.variables, sep="/"))
    about = {
        "format": FORMAT,
        "recipe": json.dumps(config_lib.flatten(pretrained.config)),
        "source": pretrained.source,
    }
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
    about, variables = checkpoints.read_encoder(folder)
    config = config_lib.from_recipe(about["recipe"])
    return Pretrained(config, variables, f"{folder} ({config.name}, step {about['step']})")


def _read_file(file: pathlib.Path) -> Pretrained:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{file} is a safetensors file of format {about.get('format')!r}, not {FORMAT!r}; "
            "`python -m moco_jax.convert` makes one of other projects' weights"
        )
    flat = safetensors.numpy.load_file(file)
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    return Pretrained(
        config_lib.from_recipe(json.loads(about["recipe"])), variables, about["source"]
    )
