"""The arms of the study of pretexts: experiments that differ in what the network learns from."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.models.backbones import BACKBONES
from moco_jax.pretraining import fit
from moco_jax.terminal import arguments, help
from moco_jax.training.comparison import IMAGE_PLACES
from moco_jax.training.flat_config import flatten

THEN, UNTRAINED = "masked_then_contrastive", "untrained"
# The arms with an experiment of their own, and the variant that is their default.
VARIANTS = {"contrastive": "v3_vit", "masked": "mae", "both": "v3_mae"}
ARMS = (*VARIANTS, THEN, UNTRAINED)
# What all arms must have in common: images, batch, network and kNN.
_SAME = (
    *(*IMAGE_PLACES, "data.test_split", "data.image_size", "batch_size"),
    *(f"model.{key}" for key in ("name", "stem", "width", "patch", "heads", "depth")),
    *(f"knn.{key}" for key in ("k", "temperature", "features", "bank", "queries")),
)
# What an evaluation has in common with the pretraining: its images.
_IMAGES = (*IMAGE_PLACES, "data.test_split", "data.exif_orientation", "data.bit_depth")


def parse(values: Sequence[str], file: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the chosen arms in their order, and the experiment of each arm that has one.

    Args:
      values: of --arms: NAME or NAME=FILE:VARIANT; () chooses all.
      file: the value of --config. With a variant it is the contrastive arm.

    Raises:
      ValueError: for an unknown arm, or one that is named twice or takes no experiment.
    """
    path, _, variant = file.partition(":")
    if pathlib.Path(path).stem == "folder":  # its variants are images
        raise ValueError(
            f"--config={file} has no experiment of each arm; give a config with the variants "
            f"{', '.join(VARIANTS.values())}, or --arms=contrastive=FILE:VARIANT,..."
        )
    files = {arm: f"{path}:{default}" for arm, default in VARIANTS.items()}
    if variant:
        files["contrastive"] = file
    names = [value.partition("=")[0] for value in values] or list(ARMS)
    for name, value in zip(names, values, strict=False):
        _, equals, own = value.partition("=")
        if name not in ARMS:
            raise ValueError(f"--arms has no arm {name!r}; allowed: {', '.join(ARMS)}")
        if equals and name not in VARIANTS:
            raise ValueError(f"--arms: {name} takes no experiment; give those of the other arms")
        if equals:
            files[name] = own
    if len(set(names)) < len(names):
        raise ValueError(f"--arms has an arm twice: {', '.join(names)}")
    return tuple(arm for arm in ARMS if arm in names), files


def load(value: str, flag: str) -> ConfigDict:
    """Returns the config of FILE or FILE:VARIANT; the error of another value begins with a flag."""
    installed = help.with_installed_config([f"--config={value}"])[0].partition("=")[2]
    config = arguments.loaded_config(installed)
    if isinstance(config, str):
        raise ValueError(f"{flag}={value}: {config}")
    return config


def configs(
    arms: Sequence[str], files: Mapping[str, str], changes: Mapping[str, Any], devices: int
) -> tuple[dict[str, ConfigDict], list[str]]:
    """Returns the config of the contrastive arm and of those that others need, and lines to print.

    Keys that are left to the images have values; the lines say which.

    Args:
      arms: chosen.
      files: the experiment of each arm that has one.
      changes: of the command line, by key; they apply to every arm.
      devices: number of devices that split the batch.

    Raises:
      ValueError: for a file that is no experiment of pretraining, and for arms that can't be
        compared.
    """
    needed = {"contrastive", *arms, *(("masked",) if THEN in arms else ())}
    found, lines = {}, []
    for arm in (name for name in VARIANTS if name in needed):
        try:
            config = load(files[arm], arm)
        except ValueError as error:
            raise ValueError(
                f"{error}\nGive the experiment of each arm: "
                "--arms=contrastive=FILE:VARIANT,masked=FILE:VARIANT,both=FILE:VARIANT"
            ) from None
        if config.get("task") != "pretrain":
            raise ValueError(
                f"{arm}={files[arm]}: an arm needs task='pretrain', got {config.get('task')!r}"
            )
        found[arm] = changed(config, changes)
        if fit.open_keys(found[arm]):
            found[arm], _, chosen = fit.prepared(found[arm], devices)
            lines += chosen
    check(found)
    return found, lines


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with changes; a new length replaces its own."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(changes))
    if "steps" in changes and "epochs" not in changes:
        config.epochs = None
    elif "epochs" in changes and "steps" not in changes:
        config.steps = None
    return config


def check(found: Mapping[str, ConfigDict]) -> None:
    """Raises a ValueError for arms that are not what they are named, or can't be compared."""
    problems = []
    for arm, config in found.items():
        if config.pretext != arm:
            problems.append(
                f"the arm {arm} needs pretext={arm!r}, got {config.pretext!r}; give --config "
                f"without a variant, or --arms={arm}=FILE:VARIANT"
            )
    flat = {arm: flatten(config) for arm, config in found.items()}
    for key in _SAME:
        values = {arm: keys[key] for arm, keys in flat.items()}
        if any(value != values["contrastive"] for value in values.values()):
            listed = ", ".join(f"{value!r} in {arm}" for arm, value in values.items())
            problems.append(f"{key} must be the same in all arms: {listed}; --config.{key}=...")
    if problems:
        raise ValueError("\n".join(problems))


def evaluation(
    value: str | None, task: str, config: ConfigDict, file: str, epochs: float | None = None
) -> ConfigDict:
    """Returns the config of an evaluation, on the images of the arms, without a baseline.

    Args:
      value: FILE or FILE:VARIANT, or None for the experiment of the task beside that of --config,
        with a ViT its variant mae if there is one.
      task: linear or finetune, also the name of the flag.
      config: of the contrastive arm.
      file: the value of --config.
      epochs: length of the evaluation, None for its own. Warm-up stays the same fraction of it.

    Raises:
      ValueError: if there is no such experiment, or it is of another task.
    """
    if value is None:
        value = _beside(file, task)
        if "patch" in BACKBONES[config.model.name].keys and _exists(f"{value}:mae"):
            value += ":mae"
    found = load(value, f"--{task}")
    if found.get("task") != task:
        raise ValueError(f"--{task}={value}: this needs task={task!r}, got {found.get('task')!r}")
    ours = flatten(config)
    found.update_from_flattened_dict({key: ours[key] for key in _IMAGES} | {"baseline": False})
    if epochs is not None:
        if found.steps is None:
            found.warmup_epochs *= epochs / found.epochs
        found.steps, found.epochs = None, epochs
    return found


def _exists(value: str) -> bool:
    return not isinstance(arguments.loaded_config(value), str)


def _beside(file: str, task: str) -> str:
    """Returns the experiment of a task for the images of an experiment, such as digits_linear.py.

    That of a file whose name begins alike serves too: imagenet_linear.py for imagenet_v3.py.
    """
    path = pathlib.Path(file.partition(":")[0])
    words = path.stem.split("_")
    names = ["_".join(words[:count]) + f"_{task}.py" for count in range(len(words), 0, -1)]
    for name in names:
        if path.with_name(name).is_file():
            return str(path.with_name(name))
    raise ValueError(f"there is no {names[0]} beside {path}; give --{task}=FILE.py:VARIANT")
