"""Checkpoints: saved, restored and compared with the config. Every save calls Orbax here."""

import functools
import logging as python_logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import place
from moco_jax.terminal import logs, progress
from moco_jax.training.comparison import (
    Kind,
    changed_contents,
    check_kind,
    check_structure,
    compare_contents,
    compare_number,
    differences,
    matches,
    shapes,
    table,
)
from moco_jax.training.flat_config import flatten
from moco_jax.training.integrity import checkpoint_files, checksums
from moco_jax.training.remote import copies, gathering, together
from moco_jax.training.task import Content

_RETRIES = (1, 4, 10, 20, 25)  # seconds to wait before the last state is saved again
_REMOVALS = 20  # tries to remove an unfinished checkpoint


class NotSaved(OSError):
    """A state that must be saved can't be saved."""


class StateNotFinite(Exception):
    """The state has NaN or infinite values, and is not saved."""


class Checkpoints:
    """The checkpoints of one workdir, saved asynchronously, the latest few kept.

    A checkpoint is written under another name and renamed when it is complete, so a save that a
    crash cut short is never taken for a checkpoint. A save that fails is reported, and changes
    nothing: the run goes on, and the next save is tried as usual.

    Attributes:
      latest: step of the newest checkpoint that is known to be complete, None without one.
      since: the first step whose images and views are those of this config.
    """

    def __init__(self, folder: pathlib.Path, keep: int, recipe: dict[str, Any], kind: Kind):
        """Reads nothing yet.

        Args:
          folder: of the checkpoints.
          keep: number of latest checkpoints that are kept.
          recipe: the flat config, saved beside the state.
          kind: of the run.
        """
        self.folder, self._keep, self._recipe, self._kind = folder.absolute(), keep, recipe, kind
        # Only process 0 has the files, and saves for all.
        self._alone = jax.process_count() > 1 and copies.is_own(folder)
        self.latest: int | None = None
        self.since = 0
        self._about: dict[str, Any] = {}  # of the checkpoint that `check` chose
        self._arrays: Any = None  # its state, until it is restored
        self._places: dict[str, tuple[Any, Any]] = {}  # that changed since
        self._images: int | None = None
        self._contents: dict[str, Any] = {}
        self._saving: int | None = None
        _hide_tracebacks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is not KeyboardInterrupt:  # a second Ctrl-C does not wait for a save
            self.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(self._keep),
            enable_async_checkpointing=True,
        )
        if self._alone:
            self.folder.mkdir(parents=True, exist_ok=True)
            options.create = False  # Orbax asks for it
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
            )
        return ocp.CheckpointManager(self.folder, options=options)

    def _remove_unfinished(self) -> None:
        """Removes what a killed or failed save left behind.

        Orbax would remove it in a thread that outlives a start that fails.
        """
        for _ in range(_REMOVALS):
            left = list(self.folder.glob("*.orbax-checkpoint-tmp*"))
            if not left:
                return
            for unfinished in left:
                shutil.rmtree(unfinished, ignore_errors=True)
            time.sleep(0.1)  # threads of a failed save may still write

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of the checkpoint of this step."""
        return self.folder / str(step)

    def check(self) -> None:
        """Chooses the newest whole checkpoint, if there is one, and compares it with the config.

        Damaged ones are renamed; warnings name them, and harmless changes of the config.

        Raises:
          ValueError: if it has another kind, its state has another shape, or none is whole.
        """
        found = cluster.on_first(self._newest_whole)
        if found is None:
            return
        self.latest, self._about = step, about = found
        path = self.path(step)
        check_kind(path, about, self._kind.name, "give another --workdir")
        changed = differences(self._older_values() | about["recipe"], self._recipe)
        if about.get("contents"):
            self._places = {k: x for k, x in changed.items() if matches(k, self._kind.places)}
            changed = {k: x for k, x in changed.items() if k not in self._places}
        check_structure(path, changed, self._kind.structure)
        if changed and cluster.is_first():
            logs.warning("continuing with a changed config:\n%s", table(changed))
        same = not any(matches(key, self._kind.views) for key in changed)
        self.since = about.get("since", step) if same else step

    def _newest_whole(self) -> tuple[int, dict[str, Any]] | None:
        self._remove_unfinished()
        with progress.phase("reading the newest checkpoint"):
            found = checkpoint_files.newest_whole(self.folder)
        if found is None:
            return None
        checkpoint_files.set_aside(self.folder, found.damaged)
        self._arrays = found.arrays
        return found.step, found.about

    def _older_values(self) -> dict[str, Any]:
        """Returns the base config's values of the recipe's keys.

        A key that came later has in every older run the value of the base config.
        """
        base = flatten(self._kind.base()) if self._kind.base else {}
        return {key: value for key, value in base.items() if key in self._recipe}

    def identify(
        self,
        images: int | None,
        contents: Mapping[str, Content] | None = None,
        *,
        may_change: bool = False,
    ) -> None:
        """Notes what the run uses; compares it with the checkpoint that `check` chose.

        The order of the images and the length of an epoch follow from their number.

        Args:
          images: number of training images; None if it is unknown.
          contents: what else decides the run besides its config, by name, such as "images".
          may_change: whether the run continues on other images, with a warning.

        Raises:
          ValueError: if a content differs, and may not.
        """
        self._images = images
        known, given = self._about.get("contents") or {}, contents or {}
        # What only the first start used, such as the weights that it began from, stays recorded.
        self._contents = known | {
            name: {"description": content.description, "fingerprint": content.fingerprint}
            for name, content in given.items()
        }
        if self.latest is None:
            return
        if "images" not in known:
            cluster.on_first(lambda: compare_number(self.folder, self._about, images, self._kind))
        changed = cluster.on_first(lambda: changed_contents(known, given))
        if changed or ("images" not in known and self._about.get("images") != images):
            self.since = self.latest
        if changed:
            where = f"{self.folder.parent} changed since step {self.latest}"
            may = may_change and not self._kind.fixed_images
            pairs = {name: (known[name]["description"], given[name]) for name in changed}
            cluster.on_first(
                lambda: compare_contents(pairs, where, table(self._places), self._kind, may)
            )

    def restore(self, target: Any) -> Any:
        """Returns the state that `check` chose, with the target's shardings, on any devices.

        Raises:
          ValueError: if the target has other arrays, or the state is not as it was saved.
        """
        assert self.latest is not None
        path = self.path(self.latest)
        arrays, self._arrays = self._arrays, None
        wanted = checksums.named(target)
        if self._alone:
            cluster.on_first(lambda: self._check_arrays(path, arrays, wanted))
            named = checksums.named(arrays)
            placed = [
                place(gathering.received(named.get(name), x), x.sharding)
                for name, x in wanted.items()
            ]
            return jax.tree.unflatten(jax.tree.structure(target), placed)
        if arrays is None:  # on another process than the one that chose the checkpoint
            try:
                arrays = checkpoint_files.read_arrays(path, self._about)
            except checkpoint_files.Damaged as error:
                raise ValueError(
                    f"{path} is whole for process 0, but here {error}. All machines must see the "
                    "same files."
                ) from error
        self._check_arrays(path, arrays, wanted)
        named = checksums.named(arrays)
        placed = [place(named[name], x.sharding) for name, x in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(target), placed)

    def _check_arrays(self, path: pathlib.Path, arrays: Any, wanted: dict[str, Any]) -> None:
        """Raises a ValueError unless a checkpoint has the arrays that are wanted."""
        found = checksums.named(arrays)
        old, new = ({n: [str(x.dtype), [*x.shape]] for n, x in t.items()} for t in (found, wanted))
        other = checksums.unequal(old, new)
        if other:
            raise ValueError(
                f"{path} can't be continued: the config or this version of moco_jax has other "
                f"arrays: {shapes(other, old, new)}. Give another --workdir."
            )

    def save(self, step: int, state: Any) -> bool:
        """Starts saving; returns when the arrays are copied, so that they may be donated.

        If the save before this one failed, or this one can't begin, a warning says so.

        Returns:
          Whether the save began, or the step is saved already.

        Raises:
          StateNotFinite: if the state has NaN or infinite values; the last checkpoint stays.
          NotSaved: if it fails in one of several processes, which the others can't know.
        """
        self.wait()
        if step == self.latest:
            return True
        found = checksums.summarize(state)
        bad = [name for name in found.not_finite if not self._diverges(name)]
        if bad:
            raise StateNotFinite(checksums.listed(bad, 5))
        about = {
            "kind": self._kind.name,
            "recipe": self._recipe,
            "images": self._images,
            "contents": self._contents,
            "step": step,
            "since": self.since,
            "arrays": found.arrays,
        }
        if self._alone:
            state = gathering.gathered(state)
        self._saving = step
        if not self._agreed(lambda: self._begin(step, state, about)):
            self._saving = None
            return False
        return True

    def _begin(self, step: int, state: Any, about: dict[str, Any]) -> bool:
        """Starts to write; returns whether that is possible."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            about=ocp.args.JsonSave(checkpoint_files.sealed(about)),  # pyright: ignore[reportCallIssue]
        )
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and TensorStore raise many types
            self._report(error)
            return False
        return True

    def _agreed(self, work: Callable[[], bool]) -> bool:
        """Returns what `work` returns, on process 0 if that saves for all."""
        return together.on_first(work) if self._alone else work()

    def _diverges(self, name: str) -> bool:
        return self._kind.may_diverge in name.split("/")

    def wait(self) -> bool:
        """Returns when no save is under way: whether the last one is complete on disk."""
        if self._saving is None:
            return True
        step = self._saving
        if not self._agreed(self._written):
            self._saving = None
            return False
        self.latest, self._saving = step, None
        return True

    def _written(self) -> bool:
        """Waits for the save under way; returns whether it is complete."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._report(error)
            return False
        return True

    def _report(self, error: Exception) -> None:
        """Warns of a failed save; a new manager has none of its state."""
        step, self._saving = self._saving, None
        good = f"{self.path(self.latest)}" if self.latest is not None else "none"
        message = (
            f"step {step} could not be saved in {self.folder}: {checkpoint_files.reason(error)}\n"
            f"Last good checkpoint: {good}."
        )
        if jax.process_count() > 1 and not self._alone:
            raise NotSaved(message) from error
        logs.warning("%s The run goes on; the next save is tried as usual.", message)
        manager = self.__dict__.pop("_manager", None)
        try:
            if manager is not None:
                manager.close()
            self._remove_unfinished()  # its space is needed
        except Exception as second:
            logs.debug("after a failed save: %s", second)

    def finish(self, step: int, state: Any) -> None:
        """Saves a state and returns when it is complete on disk; tries for about a minute.

        Raises:
          StateNotFinite: see `save`.
          NotSaved: if it can't be saved.
        """
        for seconds in (*_RETRIES, None):
            if self.save(step, state) and self.wait() and self.latest == step:
                return
            if seconds is not None:
                time.sleep(seconds)
        good = self.path(self.latest) if self.latest is not None else "none"
        raise NotSaved(
            f"the state of step {step} is not saved: {self.folder} can't be written (the warnings "
            f"above say why). Last good checkpoint: {good}. Make space, and start the same command "
            "again."
        )

    def close(self) -> None:
        """Waits for a save under way; warns if it fails."""
        if "_manager" not in self.__dict__:
            return
        # Not `wait`: the other processes may have ended.
        if self._saving is not None and self._written():
            self.latest = self._saving
        self._saving = None
        manager = self.__dict__.pop("_manager", None)
        if manager is not None:
            manager.close()


@functools.cache
def _hide_tracebacks() -> None:
    """Hides the tracebacks of failed saves that libraries print; we report each failure once.

    Orbax logs errors that it also raises. Tasks that it leaves behind call a closed event loop.
    """

    def wanted(record: python_logging.LogRecord) -> bool:
        foreign = "orbax" in record.pathname or record.name == "asyncio"
        return not (record.exc_info and foreign) or logging.level_debug()

    shown = sys.unraisablehook

    def show(found: Any) -> None:
        closed = isinstance(found.exc_value, RuntimeError) and "loop is closed" in str(
            found.exc_value
        )
        if not closed or logging.level_debug():
            shown(found)

    logging.get_absl_logger().addFilter(wanted)
    python_logging.getLogger("asyncio").addFilter(wanted)
    sys.unraisablehook = show
