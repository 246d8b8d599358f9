"""The images that a caller names for an encoder: a folder, a file, digits or a TFDS data set."""

import os

from ml_collections import ConfigDict

from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Source
from moco_jax.terminal.paths import each, missing


def where(images: str | os.PathLike) -> dict[str, str]:
    """Returns the keys of `data` that name these images: `source` and `path`.

    Raises:
      FileNotFoundError: if there is no such file or folder.
    """
    named = os.fspath(images)
    if named == "digits" or named.startswith("tfds:"):
        return {"source": named, "path": ""}
    if absent := missing(named):
        raise FileNotFoundError(
            f"images={named!r}: there is no file or folder {absent}; allowed: a folder, an "
            "archive, shards, an .npz, a .parquet, a list of paths, several joined by '+', "
            "digits, tfds:<name>"
        )
    return {"source": "images", "path": each(str, named)}


def open_split(
    config: ConfigDict, changes: dict[str, str], split: str | None
) -> tuple[Source, tuple[str, ...]]:
    """Returns all images of one split, and lines about what was found.

    Args:
      config: of the encoder's run, which says how images are found.
      changes: the keys of `data` that name other images than the run's; see `where`.
      split: a name; None is 'train', or the run's `data.train_split` without changes.

    Raises:
      ValueError: if there is no such split.
      OSError: for images that are absent or can't be read.
    """
    whole = {"held_out": 0.0, "test_split": ""}  # all images of the split
    place = {"source": config.data.source, "path": config.data.path} | changes
    if place["path"].lower().endswith(".npz") or place == {"source": "digits", "path": ""}:
        # These have two splits of fixed names.
        sources = open_named(config, **whole, **changes)
        splits = {"train": sources.train, "test": sources.test}
        source = splits.get(split or "train")
        if source is None:
            known = ", ".join(name for name, found in splits.items() if found)
            raise ValueError(f"there is no such split; allowed: {known}")
        notes = tuple(sources.notes)
        if source is sources.test:  # the first line describes the training images
            notes = (f"{source.name}: {len(source)} images", *notes[1:])
        return source, notes
    if changes or split is not None:
        whole["train_split"] = "train" if split is None else split
    sources = open_named(config, **whole, **changes)
    return sources.train, tuple(sources.notes)
