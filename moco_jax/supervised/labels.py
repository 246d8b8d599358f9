"""Which of a source's labelled images are trained on: all, a drawn fraction, or those of a list."""

import os
import pathlib

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.sources.source import Source, take

_SHOWN = 3  # names in an error


def labelled(source: Source, config: ConfigDict) -> tuple[Source, str]:
    """Returns the images to train on, and a line that tells which they are.

    Raises:
      ValueError: if the source has no labels, or the list names images that it lacks.
      OSError: if the list can't be read.
    """
    if source.labels is None:
        raise ValueError(
            f"{source.name} has no labels; a supervised task needs them: one folder a class, or a "
            "data set with classes"
        )
    if config.label_list:
        indices = _listed(source, config.label_list)
        how = f"of the list {config.label_list}"
    elif config.label_fraction < 1:
        indices = draw(source.labels, config.label_fraction, config.seed)
        how = f"a fraction of {config.label_fraction:g}, drawn class by class by seed {config.seed}"
    else:
        return source, f"labels: all {len(source)}"
    counts = np.bincount(source.labels[indices], minlength=len(source.class_names))
    told = (
        f"labels: {len(indices)} of {len(source)}, {how}; {counts.min()} to {counts.max()} a class"
    )
    return take(source, indices, source.name), told


def draw(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns indices, ascending, of a fraction of each class, at least one image of each."""
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def _listed(source: Source, path: str) -> np.ndarray:
    """Returns the indices of the images that a file names, one a line, by path or file name."""
    lines = pathlib.Path(path).expanduser().read_text().splitlines()
    wanted = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not wanted:
        raise ValueError(f"the list {path} names no image")
    places: dict[str, list[int]] = {}
    for index, name in enumerate(source.names):
        for known in {name, os.path.basename(name)} & wanted.keys():
            places.setdefault(known, []).append(index)
    absent = [name for name in wanted if name not in places]
    if absent:
        raise ValueError(
            f"{len(absent)} of the {len(wanted)} names in {path} are no images of {source.name}: "
            f"{', '.join(absent[:_SHOWN])}, ...; its own are like {source.names[0]}"
        )
    twice = [name for name, found in places.items() if len(found) > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names in {path} stand for several images of {source.name}, such as "
            f"{twice[0]}; give their paths"
        )
    return np.sort(np.concatenate([places[name] for name in wanted]))
