"""Selects the labelled images for training: all, a random fraction, or those of a list."""

import os

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import Source, only_labelled, take
from moco_jax.terminal.command_line import naming
from moco_jax.text import line, printable

_NAMES_IN_ERROR = 3


def labelled(source: Source, config: ConfigDict) -> tuple[Source, str]:
    """Returns the images for training, and a line that describes them; all have a label.

    Raises:
      ValueError: if the source has no labels, or does not have the images of the list.
      OSError: if the list can't be read.
    """
    if source.labels is None:
        raise ValueError(
            f"{source.name} has no labels; a supervised task needs them: set --config.data.path to "
            "a folder with one subfolder for each class, or --config.data.source to a data set "
            "with classes"
        )
    total, source = len(source), only_labelled(source)
    assert source.labels is not None
    if config.label_list:
        indices = _listed(source, config.label_list)
        selected_by = f"listed in {config.label_list}"
    elif config.label_fraction < 1:
        indices = draw(source.labels, config.label_fraction, config.seed)
        selected_by = f"{config.label_fraction:g} of each class, drawn with seed {config.seed}"
    else:
        all_of = f"all {total}" if len(source) == total else f"{len(source)} of {total}"
        return source, f"labels: {all_of} images"
    counts = np.bincount(source.labels[indices], minlength=len(source.class_names))
    note = (
        f"labels: {len(indices)} of {len(source)} images, {selected_by}; {counts.min()} to "
        f"{counts.max()} a class"
    )
    return take(source, indices, source.name), note


def draw(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns ascending indices of a random fraction of each class, at least one image of each."""
    rng = np.random.default_rng(seed)
    classes = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    drawn = [members[: max(1, round(fraction * len(members)))] for members in classes]
    return np.sort(np.concatenate(drawn))


def _listed(source: Source, path: str) -> np.ndarray:
    """Returns the indices of the images in a file of names: one path or file name a line.

    A name is the bytes of a file name, or the text that stands for them in files of features.
    """
    with naming(f"--config.label_list={path}"):
        # As Python decodes file names: the list may have names that are not UTF-8.
        lines = os.fsdecode(read_file(os.path.expanduser(path))).removeprefix("\ufeff").split("\n")
    wanted = dict.fromkeys(name.strip() for name in lines if name.strip())
    if not wanted:
        raise ValueError(f"label_list={path!r}: the file has no names of images")
    found: dict[str, list[int]] = {}
    for index, name in enumerate(source.names):
        both = (name, os.path.basename(name))
        for known in {*both, *map(printable, both)} & wanted.keys():
            found.setdefault(known, []).append(index)
    absent = [name for name in wanted if name not in found]
    if absent:
        more = ", ..." if len(absent) > _NAMES_IN_ERROR else ""
        raise ValueError(
            f"label_list={path!r}: {len(absent)} of the {len(wanted)} names are not images of "
            f"{source.name}: {', '.join(map(line, absent[:_NAMES_IN_ERROR]))}{more}; the names of "
            f"its images are like {printable(source.names[0])}"
        )
    ambiguous = [name for name, indices in found.items() if len(indices) > 1]
    if ambiguous:
        raise ValueError(
            f"label_list={path!r}: {len(ambiguous)} names match several images of {source.name}, "
            f"such as {line(ambiguous[0])}; give paths instead of file names"
        )
    return np.sort(np.concatenate([found[name] for name in wanted]))
