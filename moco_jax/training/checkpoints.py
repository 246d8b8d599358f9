"""Checkpoints: every call of Orbax."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from moco_jax import config as config_lib
from moco_jax.parallel import cluster


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a checkpoint is of; a workdir holds those of one kind.

    Attributes:
      name: written into each checkpoint.
      structure: keys of the config, or beginnings that end in "." or "_", that shape the state:
        another value can't continue it.
      results: metrics of which one tells, in the log, that a step was evaluated.
    """

    name: str
    structure: tuple[str, ...]
    results: tuple[str, ...]

    def shapes(self, key: str) -> bool:
        """Returns whether this key of the config shapes the state."""
        folders = tuple(name for name in self.structure if name.endswith((".", "_")))
        return key in self.structure or key.startswith(folders)


_IMAGES = ("data.source", "data.path", "data.train_split", "data.held_out")
_SUPERVISED = ("model.", "pretrained", "from_scratch", "label_", "ema", *_IMAGES)
PRETRAIN = Kind(
    "moco_jax.pretrain",
    ("model.", "queue_", "dictionary", "bank.loss", "key_encoder", "batch_size", "symmetric"),
    results=("knn_top1", "key_cosine/age_0"),
)
LINEAR = Kind("moco_jax.linear", (*_SUPERVISED, "lr"), results=("top1",))
FINETUNE = Kind("moco_jax.finetune", _SUPERVISED, results=("top1",))
SEGMENT = Kind(
    "moco_jax.segment",
    ("model.", "head.", "classes", "pretrained", "from_scratch", "data.path", "data.train_split"),
    results=("miou",),
)


class Checkpoints:
    """The checkpoints of one workdir, saved asynchronously, the latest few kept.

    A checkpoint is written under another name and renamed when whole, so one that a crash cut
    short is never taken for a checkpoint.
    """

    def __init__(self, folder: pathlib.Path, keep: int, recipe: dict[str, Any], kind: Kind):
        """Opens (or makes) the folder.

        Args:
          folder: of the checkpoints.
          keep: the latest so many are kept.
          recipe: the flattened config, saved beside the state.
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

        Orbax would do it in a thread that outlives a start that fails.
        """
        for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)

    @property
    def latest(self) -> int | None:
        """The step of the latest whole checkpoint."""
        return self._manager.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """Returns where the checkpoint of this step lies."""
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
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=_json(about))
        )

    def restore(self, target: Any) -> Any:
        """Returns the latest state, laid out as the target, on however many devices."""
        step = self._manager.latest_step()
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]

    def note_images(self, images: int) -> None:
        """Notes how many images there are, and warns if the latest checkpoint saw another number.

        The order of the images and the length of an epoch follow from it.

        Raises:
          ValueError: if it saw another number, and its memory bank has a slot for each.
        """
        self._images = images
        step = self.latest
        saved = self._about(step)["images"] if step is not None else images
        if saved != images and self._recipe.get("dictionary") == "memory_bank":
            raise ValueError(
                f"the memory bank in {self.folder} has a slot for each of {saved} images, now "
                f"there are {images}; give those images, or another --workdir"
            )
        # Another project's checkpoint, converted, does not tell.
        if saved not in (None, images) and cluster.is_first():
            logging.warning(
                "the checkpoint saw %d images, now there are %d: the run goes on with another "
                "order of the images and another length of an epoch",
                saved,
                images,
            )

    def check(self) -> None:
        """Compares the latest checkpoint, if any, with the config; warns of harmless changes.

        Raises:
          ValueError: if it is of another kind, or of a run whose state has another shape.
        """
        step = self.latest
        if step is None:
            return
        about = self._about(step)
        _check_kind(self.path(step), about, self._kind)
        # A key that came later has the value that it stands for in every older run.
        changed = differences(self._recipe_defaults() | about["recipe"], self._recipe)
        fatal = {key: values for key, values in changed.items() if self._shapes(key)}
        if fatal:
            raise ValueError(
                f"{self.path(step)} can't be continued, since the config now asks for another "
                f"run:\n{_table(fatal)}\nGive another --workdir, or the old values."
            )
        if changed and cluster.is_first():
            logging.warning("continuing with a changed config:\n%s", _table(changed))

    def _recipe_defaults(self) -> dict[str, Any]:
        """Returns the base config's values of the keys that pretraining's recipes have."""
        base = config_lib.flatten(config_lib.base()) if self._kind is PRETRAIN else {}
        return {key: value for key, value in base.items() if key in self._recipe}

    def _shapes(self, key: str) -> bool:
        """Returns whether this key shapes the state: of a bank also what its slots are of."""
        bank = self._kind is PRETRAIN and self._recipe["dictionary"] == "memory_bank"
        return self._kind.shapes(key) or (bank and key in (*_IMAGES, "seed"))

    def _about(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        try:
            return self._manager.restore(step, args=args)["about"]
        except (KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.path(step)} is no checkpoint of moco_jax; give another --workdir"
            ) from error

    def wait(self) -> None:
        """Returns when all that was saved is whole on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def read_encoder(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (about, variables) of a checkpoint's query encoder, on the host.

    Args:
      folder: of one checkpoint: `checkpoints/<step>` of a workdir.

    Raises:
      ValueError: if it is no pretraining checkpoint of ours, or damaged.
    """
    about_file = folder / "about" / "metadata"
    try:
        about = json.loads(about_file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no checkpoint of moco_jax: {error}") from error
    _check_kind(folder, about, PRETRAIN)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        # The state's own files say what is in it: neither its optimizer nor its queue is read.
        tree = handler.metadata(epath.Path(folder / "state")).tree
        item = {name: tree[name] for name in ("params", "batch_stats")}
        item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item)
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=on_host, partial_restore=True)
        return about, handler.restore(epath.Path(folder / "state"), args=args)
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def _check_kind(folder: pathlib.Path, about: dict[str, Any], kind: Kind) -> None:
    """Raises a ValueError if what tells about a checkpoint tells of another kind."""
    if about.get("kind") != kind.name:
        raise ValueError(
            f"{folder} is a checkpoint of kind {about.get('kind')!r}, not {kind.name!r}"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old, new)} of the keys that differ."""
    keys = sorted(old.keys() | new.keys())
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def _table(changed: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(
        f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, (old, new) in changed.items()
    )


def _json(about: dict[str, Any]) -> ocp.args.JsonSave:
    return ocp.args.JsonSave(about)
