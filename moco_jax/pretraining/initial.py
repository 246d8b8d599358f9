"""The start from existing weights: `config.init` initialises the backbone of both encoders."""

import copy
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax.contrastive.state import TrainState
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.encoder import make_encoder
from moco_jax.models.pretexts import effective
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import place
from moco_jax.pretraining import fit, validation
from moco_jax.pretraining.run import PretrainRun
from moco_jax.terminal import logs, progress
from moco_jax.training.integrity import checkpoint_files, checksums
from moco_jax.training.remote import copies
from moco_jax.training.remote.reading import fetched
from moco_jax.training.task import Content
from moco_jax.weights import sources
from moco_jax.weights.sources import Source

# The keys of `model` that decide which network a backbone is.
_NETWORK = ("name", "stem", "width", "patch", "heads", "depth", "positions")
_DICTIONARIES = {"queue": "queue", "memory_bank": "memory bank"}  # those with entries


@dataclasses.dataclass(frozen=True)
class Initial:
    """A backbone that a run starts from.

    Attributes:
      backbone: `params` and, if it has batch norm, `batch_stats`: nested dicts of host arrays.
      content: its identity, which the checkpoints of the run record.
      notes: lines about what is loaded and what is not.
    """

    backbone: dict[str, Any]
    content: Content
    notes: tuple[str, ...]


def read(
    config: ConfigDict, folder: str | pathlib.Path, devices: int
) -> tuple[ConfigDict, Initial | None]:
    """Returns the config and the backbone of `config.init`.

    There is no backbone without `init`, and if the workdir has a checkpoint, which the run
    continues from: `init` becomes that of its start, and a warning names another one.
    A `model.stem` that is left to the images becomes that of the backbone.

    Args:
      config: of the run; not changed.
      folder: the workdir.
      devices: number of devices that split the batch.

    Raises:
      ValueError: for problems of the config, for a file that can't be used, for a backbone that is
        not the config's, or for files that differ between processes.
    """
    checkpoints = pathlib.Path(folder).expanduser() / "checkpoints"
    if cluster.on_first(lambda: bool(checkpoint_files.steps(checkpoints))):
        return _continued(config, cluster.on_first(lambda: fit.recorded(folder))), None
    if not config.init:
        return config, None
    whole = fit.trial(config, devices)
    validation.check(whole, devices, warns=False)
    leaves_stem = "model.stem" in fit.open_keys(config)
    found: list[Source] = []

    def problem() -> str:
        try:
            found.append(_read(config.init, config.model.heads or None))
            if leaves_stem:
                whole.model.stem = found[0].pretrained.config.model.stem
            return _misfit(found[0], whole)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            return f"can't be used: {error}"

    cluster.check_all(f"--config.init={config.init}", problem)
    source, lines = found[0], []
    if leaves_stem:
        config = copy.deepcopy(config)
        config.model.stem = whole.model.stem
        lines.append(f"model.stem {config.model.stem}: that of --config.init")
    backbone = source.pretrained.backbone
    content = Content(_described(source), checksums.fingerprint(backbone))
    cluster.check_alike("file of --config.init", content.fingerprint)
    return config, Initial(backbone, content, (*_notes(source, whole), *lines))


def _continued(config: ConfigDict, recipe: dict[str, Any]) -> ConfigDict:
    """Returns the config with the `init` of a recorded recipe; warns of another one."""
    began = recipe.get("init", "") if recipe else config.init
    if not isinstance(began, str):  # damage of a recipe without a checksum
        began = ""
    if config.init not in ("", began) and cluster.is_first():
        logs.warning(
            "init=%r has no effect: the run goes on from its checkpoint; another --workdir starts "
            "from these weights",
            config.init,
        )
    config = copy.deepcopy(config)
    config.init = began
    return config


def begun(run: PretrainRun, initial: Initial) -> PretrainRun:
    """Returns a run whose state at step 0 has the backbone, and whose checkpoints record it."""
    return dataclasses.replace(
        run,
        create=lambda: _start(run.create(), initial),
        contents={**run.contents, "init": initial.content},
    )


def _start(state: TrainState, initial: Initial) -> TrainState:
    """Returns the state with the backbone in both encoders, in the shardings of the state."""

    def replaced(tree: Any, backbone: Any) -> Any:
        if "backbone" not in tree:  # there is no such encoder, or no batch norm
            return tree
        placed = jax.tree.map(
            lambda old, new: place(new.astype(old.dtype), old.sharding), tree["backbone"], backbone
        )
        return {**tree, "backbone": placed}

    params, batch_stats = initial.backbone["params"], initial.backbone.get("batch_stats", {})
    return state.replace(
        params=replaced(state.params, params),
        batch_stats=replaced(state.batch_stats, batch_stats),
        key_params=replaced(state.key_params, params),
        key_batch_stats=replaced(state.key_batch_stats, batch_stats),
    )


def _read(path: str, heads: int | None) -> Source:
    with progress.phase(f"reading {path}"):
        return sources.read(fetched(path), heads=heads)


def _described(source: Source) -> str:
    """Returns where a source is and what it is."""
    path, about = source.path, source.pretrained.source
    return (
        f"{copies.named(path)}, made from {about}" if path is not None and path.is_file() else about
    )


def _misfit(source: Source, config: ConfigDict) -> str:
    """Returns in what the backbone of a source is not the config's, "" if it is."""
    theirs, fitting = source.pretrained.config.model, copy.deepcopy(config)
    keys = [key for key in _NETWORK if key in theirs and theirs[key] != config.model[key]]
    fitting.model.update({key: theirs[key] for key in keys})
    found = _shapes(source.pretrained.backbone)
    wanted = _shapes(Pretrained(config, _encoder(config), "the config").backbone)
    # Some networks differ in no array, such as those with another number of attention heads.
    if make_encoder(fitting).backbone == make_encoder(config).backbone and found == wanted:
        return ""
    odd = [
        f"\n  {name}: {found.get(name, 'absent')} in the file, {wanted.get(name, 'absent')} "
        "in the config"
        for name in sorted(checksums.unequal(found, wanted), key=_is_statistic)
    ]
    more = [f"\n  and {len(odd) - 3} more arrays"] if odd[3:] else []
    values = [
        f"\n  model.{key}: {theirs[key]!r} in the file, {config.model[key]!r} in the config"
        for key in keys
    ]
    flags = " ".join(f"--config.model.{key}={theirs[key]}" for key in keys)
    if not keys:  # learned positions depend on the size of the images
        flags = f"--config.data.image_size={source.pretrained.config.data.image_size}"
    lines = [*values, *odd[:3], *more, f"\nThe config fits it with {flags}"]
    return "has another backbone than the config:" + "".join(lines)


def _is_statistic(name: str) -> bool:
    return name.startswith("batch_stats/")


def _encoder(config: ConfigDict) -> Any:
    """Returns the abstract variables of the config's encoder."""
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((config.bn_groups, size, size, 3), config.dtype)
    return jax.eval_shape(make_encoder(config).init, jax.random.key(0), images)


def _shapes(backbone: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a backbone's arrays by their names."""
    return {name: tuple(x.shape) for name, x in checksums.named(backbone).items()}


def _notes(source: Source, config: ConfigDict) -> Iterator[str]:
    """Yields lines about what is loaded, what starts anew and what the file has besides."""
    parts = source.pretrained.variables["params"]
    arrays = checksums.named(parts["backbone"]).values()
    count = sum(x.size for x in arrays)
    size = f"{count / 1e6:.2f} M" if count >= 50_000 else str(count)
    statistics = ", and its batch statistics" * ("batch_stats" in source.pretrained.backbone)
    yield f"--config.init: {_described(source)}"
    yield from (f"  {line}" for line in source.notes)
    yield f"  loaded: the backbone, {len(arrays)} arrays of {size} parameters{statistics}"
    own = sorted(_encoder(config)["params"].keys() - {"backbone"})
    fresh = ", ".join([*_entries(config), "optimizer state"])
    yield f"  random: {', '.join(own)}; new: {fresh}"
    left = [*source.left_out, *(f"the {part}" for part in parts if part != "backbone")]
    if source.path is not None and source.path.is_dir():
        theirs = source.pretrained.config
        entries = "".join(f"{name} and the " for name in _entries(theirs))
        left += ["the key encoder"] * (effective(theirs).key_encoder in ("momentum", "trained"))
        left.append(f"the {entries}optimizer state of its run")
    if left:
        yield f"  not used: {', '.join(left)}"
    yield from _other_statistics(source, config)


def _entries(config: ConfigDict) -> list[str]:
    """Returns the name of a config's dictionary, if it keeps entries between the steps."""
    dictionary = effective(config).dictionary
    return [_DICTIONARIES[dictionary]] if dictionary in _DICTIONARIES else []


def _other_statistics(source: Source, config: ConfigDict) -> Iterator[str]:
    """Yields a warning if the images of the backbone were, or may be, normalised by other values.

    Files of other projects, and those written for them, do not contain the values.
    """
    theirs, here = source.pretrained.config.data, config.data
    keys = [key for key in ("mean", "std") if tuple(theirs[key]) != tuple(here[key])]
    if keys:
        about = "--config.init was trained with another mean or std of pixels"
        if source.path is None:
            about = (
                "the file of --config.init does not contain the mean and std of its training; if "
                "they were ImageNet's, give"
            )
        flags = (f"--config.data.{key}={','.join(map(str, theirs[key]))}" for key in keys)
        yield f"warning: {about}:\n  {' '.join(flags)}"
