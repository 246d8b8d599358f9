"""Reads and writes pretrained encoders: a workdir, a checkpoint or a safetensors file."""

import dataclasses
import json
import os
import pathlib
import zlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.models import backbones
from moco_jax.models.encoder import Encoder, make_encoder
from moco_jax.terminal import progress
from moco_jax.text import shortened
from moco_jax.training import checks
from moco_jax.training.comparison import check_kind
from moco_jax.training.flat_config import flatten, unflatten
from moco_jax.training.integrity import checkpoint_files, checksums
from moco_jax.training.integrity.checkpoint_files import Damaged
from moco_jax.training.remote import copies
from moco_jax.training.remote.reading import fetched

FORMAT = "moco_jax.encoder"  # of encoder files
PRETRAIN_KIND = "moco_jax.pretrain"  # of checkpoints that hold an encoder
# What ml_collections and the rules raise for values that no config has.
_NO_CONFIG = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
_PARTS = ("params", "batch_stats")  # of a checkpoint's state
_HEADS = ("head", "predictor", "decoder")  # the parts of an encoder behind its backbone
_USED = ("model.", "decoder.", "pretext", "bn_groups", "dtype")
_USED += ("data.image_size", "data.eval_resize")


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """An encoder and its config.

    Attributes:
      config: of the run that trained it: `model` is the network, `data` how images are prepared.
      variables: `params` and `batch_stats`, nested dicts of host arrays; each has `backbone`, and
        `head`, `predictor` and `decoder` if the encoder has them.
      source: describes the encoder in messages.
    """

    config: ConfigDict
    variables: dict[str, Any]
    source: str

    def __repr__(self) -> str:
        return f"<Pretrained {self.config.model.name}: {self.source}>"

    @property
    def encoder(self) -> Encoder:
        """The module of the variables."""
        return make_encoder(self.config)

    @property
    def backbone(self) -> dict[str, Any]:
        """The backbone's `params`, and its `batch_stats` if it has batch norm."""
        return {kind: x["backbone"] for kind, x in self.variables.items() if "backbone" in x}

    @property
    def has_head(self) -> bool:
        """Whether there is a projection head, so that `Encoder.projection` works."""
        return "head" in self.variables["params"]

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder of masked patches."""
        return "decoder" in self.variables["params"]

    def check_output(self, output: str) -> None:
        """Raises a ValueError if the output is 'head' and there is no head."""
        if output == "head" and not self.has_head:
            raise ValueError(f"{self.source} has no head; allowed: output='backbone'")


def read(path: str | os.PathLike) -> Pretrained:
    """Returns the encoder at a path.

    Args:
      path: a workdir, of which the newest whole checkpoint is read, its folder
        `checkpoints/<step>`, or a file that `write` or `python -m moco_jax.convert` wrote; also
        their URL in a bucket.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if it is not an encoder, or damaged; the message says what is allowed.
    """
    where = fetched(path).absolute()
    if not where.exists():
        raise FileNotFoundError(f"there is no encoder at {where}: no such file or folder")
    with progress.phase(f"reading the encoder {copies.named(where)}"):
        return _read_file(where) if where.is_file() else _read_folder(where)


def write(path: str | os.PathLike, pretrained: Pretrained) -> None:
    """Writes an encoder as a safetensors file with the config as metadata, for `read`."""
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(pretrained.variables, sep="/"))
    recipe = json.dumps(flatten(pretrained.config))
    about = {"format": FORMAT, "recipe": recipe, "source": pretrained.source}
    about["checksum"] = _checksum(about, pretrained.variables)
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        safetensors.numpy.save_file(flat, temporary, metadata=about)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(about: dict[str, str], variables: Any) -> str:
    """Returns the checksum of a file: of its arrays and of its metadata."""
    content = {key: about.get(key) for key in ("format", "recipe", "source")}
    content["arrays"] = checksums.fingerprint(variables)
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _read_folder(folder: pathlib.Path) -> Pretrained:
    if (folder / "about").is_dir():
        try:
            return _read_checkpoint(folder)
        except Damaged as error:
            raise ValueError(f"{folder} is not a whole checkpoint of moco_jax: {error}") from error
    checkpoints = folder / "checkpoints"
    damaged: dict[int, str] = {}
    for step in checkpoint_files.steps(checkpoints):
        try:
            found = _read_checkpoint(checkpoints / str(step))
        except Damaged as error:
            damaged[step] = str(error)
            continue
        checkpoint_files.warn_of_damaged(checkpoints, damaged, step)
        return found
    if damaged:
        raise ValueError(checkpoint_files.none_whole(checkpoints, damaged, "encoder"))
    raise ValueError(
        f"{folder} holds no checkpoint; allowed: a workdir (with checkpoints/<step>/), one "
        "of its checkpoints, or an encoder's .safetensors"
    )


def _read_checkpoint(folder: pathlib.Path) -> Pretrained:
    about = checkpoint_files.read_about(folder)
    _check_kind(folder, about)
    arrays = checkpoint_files.read_arrays(folder, about, _PARTS)
    return of_checkpoint(folder, about, arrays)


def _check_kind(folder: pathlib.Path, about: dict[str, Any]) -> None:
    remedy = "give the workdir of a pretraining run as the encoder"
    check_kind(folder, about, PRETRAIN_KIND, remedy)


def of_checkpoint(folder: pathlib.Path, about: dict[str, Any], arrays: Any) -> Pretrained:
    """Returns the encoder of a checkpoint that is read already.

    Args:
      folder: of the checkpoint.
      about: its description.
      arrays: its state on the host, or the parts of it that belong to the encoder.

    Raises:
      ValueError: if it is of another kind of run, or its arrays are not those of its recipe.
    """
    _check_kind(folder, about)
    variables = {part: arrays[part] for part in _PARTS if part in arrays}
    config = _config(about["recipe"], str(folder))
    _check_variables(variables, config, str(folder))
    return Pretrained(
        config, variables, f"{copies.named(folder)} ({config.name}, step {about['step']})"
    )


def _read_file(file: pathlib.Path) -> Pretrained:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{file} is a safetensors file of format {about.get('format')!r}, not {FORMAT!r}; "
                "`python -m moco_jax.convert` converts weights of other projects"
            )
        arrays: dict[str, Any] = safetensors.numpy.load_file(file)
    # Its library also raises an OverflowError, a KeyError for a dtype, and others.
    except (safetensors.SafetensorError, OverflowError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a safetensors file: {shortened(error)}") from error
    try:
        variables = flax.traverse_util.unflatten_dict(arrays, sep="/")
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{file}: the names of its arrays are not those of an encoder") from error
    missing = [key for key in ("recipe", "source") if key not in about]
    if missing:
        raise ValueError(f"{file}: its metadata have no {' and no '.join(missing)}")
    if unknown := about.keys() - {"format", "recipe", "source", "checksum"}:
        raise ValueError(f"{file}: its metadata have unknown keys: {', '.join(sorted(unknown))}")
    # Files of earlier versions have no checksum.
    if "checksum" in about and about["checksum"] != _checksum(about, variables):
        raise ValueError(f"{file} is damaged: its checksum is another than when it was written")
    try:
        recipe = json.loads(about["recipe"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its recipe is no JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{file}: its recipe must be a JSON object")
    config = _config(recipe, str(file))
    _check_variables(variables, config, str(file))
    return Pretrained(config, variables, about["source"])


def _config(recipe: dict[str, Any], where: str) -> ConfigDict:
    """Returns the config of a recipe; checks the keys that decide the network and its images."""
    try:
        config = unflatten(recipe, config_lib.base())
        flat = flatten(config)
        used = {key: rule for key, rule in config_lib.RULES.items() if key.startswith(_USED)}
        problems = [f"{k}={flat[k]!r} {rule(flat[k])}" for k, rule in used.items() if rule(flat[k])]
        if not problems:
            problems += [*checks.channels(config.data), *checks.crop(config.data)]
            problems += backbones.problems(config.model, config.data.image_size)
    except _NO_CONFIG as error:
        reason = shortened(error)
        raise ValueError(f"{where}: its recipe is not a config of moco_jax: {reason}") from error
    if problems:
        raise ValueError(f"{where}: its recipe can't be used: {'; '.join(problems)}")
    return config


def _check_variables(variables: dict[str, Any], config: ConfigDict, where: str) -> None:
    """Raises a ValueError unless the arrays are those of the config's encoder, and finite."""
    size = config.data.image_size  # a ViT takes those sizes only that its patch divides
    images = jax.ShapeDtypeStruct((2 * config.bn_groups, size, size, 3), config.dtype)
    try:
        shapes = jax.eval_shape(make_encoder(config).init, jax.random.key(0), images)
    except Exception as error:  # a recipe may ask for any size
        reason = shortened(error)
        raise ValueError(f"{where}: its recipe describes no network: {reason}") from error
    found = checksums.named(variables)
    # They are absent in encoders of other projects.
    parts = ["backbone", *(p for p in _HEADS if any(n.startswith(f"params/{p}/") for n in found))]
    needed = {name: x for name, x in checksums.named(shapes).items() if name.split("/")[1] in parts}
    problems = [
        f"{name} has the shape {found[name].shape}, not {shape.shape}"
        for name, shape in needed.items()
        if name in found and found[name].shape != shape.shape
    ]
    problems += [f"{name} is missing" for name in needed if name not in found]
    problems += [f"{name} is not one of them" for name in found if name not in needed]
    if problems:
        raise ValueError(
            f"{where}: its arrays are not those of its recipe's {config.model.name}: "
            f"{checksums.listed(problems)}"
        )
    # jnp, not np: numpy does not know that bfloat16 is a floating-point type.
    inexact = {name: x for name, x in found.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    other = [name for name in found if name not in inexact]
    if other:
        raise ValueError(f"{where}: not floating-point numbers: {checksums.listed(other)}")
    bad = [name for name, x in inexact.items() if not np.isfinite(x).all()]
    if bad:
        raise ValueError(f"{where}: NaN or infinite values in {checksums.listed(bad)}")
