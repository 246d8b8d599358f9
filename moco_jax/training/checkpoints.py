"""Checkpoints: every call of Orbax."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from moco_jax.parallel import cluster
from moco_jax.training.flat_config import flatten, with_current_keys


@dataclasses.dataclass(frozen=True)
class Kind:
    """The kind of run that writes a checkpoint. All checkpoints of a workdir have one kind.

    Attributes:
      name: written into each checkpoint.
      structure: config keys that shape the state, so that another value cannot continue it; an
        entry that ends in "." or "_" means all keys with this prefix.
      results: metrics; a log line that has one of them is an evaluation.
      base: returns the config whose values an older checkpoint has for keys that it lacks.
      fixed_images: whether the state has an entry for each training image.
    """

    name: str
    structure: tuple[str, ...]
    results: tuple[str, ...]
    base: Callable[[], ConfigDict] | None = None
    fixed_images: bool = False

    def shapes_state(self, key: str) -> bool:
        """Returns whether this config key shapes the state."""
        prefixes = tuple(name for name in self.structure if name.endswith((".", "_")))
        return key in self.structure or key.startswith(prefixes)


class Checkpoints:
    """The checkpoints of one workdir, saved asynchronously, the latest few kept.

    A checkpoint is written under another name and renamed when it is complete, so a save that a
    crash cut short is never taken for a checkpoint.
    """

    def __init__(self, folder: pathlib.Path, keep: int, recipe: dict[str, Any], kind: Kind):
        """Opens or makes the folder.

        Args:
          folder: of the checkpoints.
          keep: number of latest checkpoints that are kept.
          recipe: the flat config, saved beside the state.
          kind: of the run.
        """
        self.folder, self._recipe, self._kind = folder.absolute(), recipe, kind
        self._images: int | None = None
        cluster.on_first(self._remove_unfinished)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _remove_unfinished(self) -> None:
        """Removes what a killed save left behind.

        Orbax would remove it in a thread that outlives a start that fails.
        """
        for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)

    @property
    def latest(self) -> int | None:
        """The step of the latest complete checkpoint."""
        return self._manager.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of the checkpoint of this step."""
        return self.folder / str(step)

    def save(self, step: int, state: Any) -> None:
        """Starts saving; returns when the arrays are copied, so that they may be donated."""
        if step == self.latest:
            return
        about = {
            "kind": self._kind.name,
            "recipe": self._recipe,
            "images": self._images,
            "step": step,
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
        )
        self._manager.save(step, args=args)

    def restore(self, target: Any) -> Any:
        """Returns the latest state with the shardings of the target, on any number of devices."""
        step = self._manager.latest_step()
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]

    def note_images(self, images: int) -> None:
        """Notes the number of images; warns if the latest checkpoint has another number.

        The order of the images and the length of an epoch follow from it.

        Raises:
          ValueError: if the number differs and the state has an entry for each image.
        """
        self._images = images
        step = self.latest
        saved = self._about(step)["images"] if step is not None else images
        if saved != images and self._kind.fixed_images:
            raise ValueError(
                f"the memory bank in {self.folder} has a slot for each of {saved} images, now "
                f"there are {images}; give those images, or another --workdir"
            )
        # None: a converted checkpoint of another project.
        if saved not in (None, images) and cluster.is_first():
            logging.warning(
                "the checkpoint saw %d images, now there are %d: the run continues with another "
                "order of the images and another length of an epoch",
                saved,
                images,
            )

    def check(self) -> None:
        """Compares the latest checkpoint, if any, with the config; warns of harmless changes.

        Raises:
          ValueError: if it has another kind, or its state has another shape.
        """
        step = self.latest
        if step is None:
            return
        about = self._about(step)
        _check_kind(self.path(step), about, self._kind.name, "give another --workdir")
        changed = differences(self._older_values() | about["recipe"], self._recipe)
        fatal = {key: values for key, values in changed.items() if self._kind.shapes_state(key)}
        if fatal:
            raise ValueError(
                f"{self.path(step)} can't be continued: the config asks for another run:\n"
                f"{_table(fatal)}\nGive another --workdir, or the old values."
            )
        if changed and cluster.is_first():
            logging.warning("continuing with a changed config:\n%s", _table(changed))

    def _older_values(self) -> dict[str, Any]:
        """Returns the base config's values of the recipe's keys.

        A key that came later has in every older run the value of the base config.
        """
        base = flatten(self._kind.base()) if self._kind.base else {}
        return {key: value for key, value in base.items() if key in self._recipe}

    def _about(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        try:
            return _renamed(self._manager.restore(step, args=args)["about"])
        except (KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.path(step)} is not a checkpoint of moco_jax; give another --workdir"
            ) from error

    def wait(self) -> None:
        """Returns when every save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def read_encoder(folder: pathlib.Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (about, variables) of a checkpoint's query encoder, on the host.

    Args:
      folder: of one checkpoint: `checkpoints/<step>` of a workdir.
      kind: the name of the kind that the checkpoint must have.

    Raises:
      ValueError: if it is not a checkpoint of this kind, or damaged.
    """
    about_file = folder / "about" / "metadata"
    try:
        about = _renamed(json.loads(about_file.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a checkpoint of moco_jax: {error}") from error
    _check_kind(folder, about, kind, "give the workdir of a pretraining run as the encoder")
    handler = ocp.PyTreeCheckpointHandler()
    try:
        # The state's own files list its arrays: neither its optimizer nor its queue is read.
        tree = handler.metadata(epath.Path(folder / "state")).tree
        item = {name: tree[name] for name in ("params", "batch_stats")}
        item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item)
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=on_host, partial_restore=True)
        return about, handler.restore(epath.Path(folder / "state"), args=args)
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def _check_kind(folder: pathlib.Path, about: dict[str, Any], kind: str, remedy: str) -> None:
    """Raises a ValueError if a checkpoint's description has another kind."""
    if about.get("kind") != kind:
        given = about.get("kind")
        raise ValueError(f"{folder} is a checkpoint of kind {given!r}, not {kind!r}; {remedy}")


def _renamed(about: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a checkpoint of any version with the keys of this version."""
    # "pictures" is the name before 0.2.0.
    about = {"images" if key == "pictures" else key: value for key, value in about.items()}
    return about | {"recipe": with_current_keys(about.get("recipe", {}))}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old, new)} of the keys that differ."""
    keys = sorted(old.keys() | new.keys())
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def _table(changed: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(
        f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, (old, new) in changed.items()
    )
