"""The space of a run's features: images, a map, clusters, neighbours, classes, near-duplicates."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn.cluster import MiniBatchKMeans

from moco_jax.data.loading.decoding import decoding_of
from moco_jax.data.loading.order import subset
from moco_jax.data.loading.reader import Reader
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import NO_LABEL, Source, only_labelled
from moco_jax.encoders import pretrained
from moco_jax.encoders.embedding import embed
from moco_jax.encoders.feature_file import Features
from moco_jax.encoders.neighbours import nearest
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.text import printable

FEWEST = 8  # images that have a map
SIDE = 64  # pixels of a thumbnail
_BATCH = 256
_CLUSTERS = 10  # without classes
_VOTERS, _TEMPERATURE = 20, 0.1  # of the kNN classifier


class Encoded(NamedTuple):
    """Images and their features.

    Attributes:
      features: f32[N, F].
      thumbnails: uint8[N, SIDE, SIDE, 3].
      names: of the images.
      labels: i32[N], or None without classes.
      class_names: by label.
      about: what they are, for the page.
    """

    features: np.ndarray
    thumbnails: np.ndarray
    names: list[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    about: str


class Space(NamedTuple):
    """What is shown of the features.

    Attributes:
      places: f32[N, 2], on the map.
      method: that made the map, such as 'PCA'.
      clusters: i32[N].
      cosines: f32[N, k] of the nearest other images, descending.
      neighbours: i32[N, k], these images.
      predicted: i32[N], the class by the votes of the neighbours, or None without classes.
    """

    places: np.ndarray
    method: str
    clusters: np.ndarray
    cosines: np.ndarray
    neighbours: np.ndarray
    predicted: np.ndarray | None


def encode(folder, images: int) -> Encoded:
    """Returns images of a run with the features of its encoder: held-out ones if there are some.

    Args:
      folder: the workdir.
      images: most images.

    Raises:
      ValueError: without a checkpoint, or if the images are not what the run says.
      OSError: for images that are absent or can't be read.
    """
    read = pretrained.read(folder)
    sources = open_named(read.config)
    whole = sources.test or sources.train
    whole = whole if whole.labels is None else only_labelled(whole)
    source = _some(whole, images, read.config.seed)
    layout = make_layout(jax.local_devices()[:1])
    parts = list(embed(read, source, layout, output="backbone", batch_size=_BATCH))
    indices = np.concatenate([part.indices for part in parts])
    labels = None if source.labels is None else np.asarray(source.labels)[indices]
    return Encoded(
        features=np.concatenate([part.features for part in parts]),
        thumbnails=_thumbnails(source, indices, read.config.data),
        names=[printable(source.names[int(i)]) for i in indices],
        labels=labels,
        class_names=tuple(map(printable, source.class_names)),
        about=f"{len(indices):,} of the {len(whole):,} images of {source.name} (--most_images "
        f"changes how many), features of {read.source}",
    )


def encoded_before(
    features: Features, source: Source, data: ConfigDict, most: int, seed: int = 0
) -> Encoded:
    """Returns features that were computed before, with the images of the same names.

    The folder of the images may have moved: the longest end of a name that is a path in the folder
    counts.

    Args:
      features: of at least one image.
      source: the images.
      data: where they are, and how they are decoded.
      most: most images.
      seed: of the choice of the images.

    Raises:
      ValueError: if images of the features are absent from the source.
    """
    root = f"{printable(data.path)}/"
    indices_of = {printable(name).removeprefix(root): i for i, name in enumerate(source.names)}
    labels = features.labels
    rows = np.arange(len(features.names)) if labels is None else np.flatnonzero(labels != NO_LABEL)
    chosen = rows[subset(len(rows), most, seed)]
    names = [str(name) for name in features.names[chosen]]
    found = [next((indices_of[end] for end in _ends(n) if end in indices_of), None) for n in names]
    absent = [name for name, index in zip(names, found, strict=True) if index is None]
    if absent:
        raise ValueError(
            f"{source.name} has {len(names) - len(absent):,} of the {len(names):,} images that "
            f"are shown; {absent[0]} is not there"
        )
    return Encoded(
        features=features.features[chosen],
        thumbnails=_thumbnails(source, np.array(found), data),
        names=names,
        labels=None if features.labels is None else features.labels[chosen],
        class_names=features.class_names,
        about=f"{len(names):,} of the {len(features.names):,} images (--most_images changes how "
        f"many), features of {features.about['encoder']}",
    )


def _ends(name: str) -> Iterator[str]:
    """Yields a path, then the path without its first folder, and so on."""
    parts = name.split("/")
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def explore(encoded: Encoded, layout: Layout) -> Space:
    """Returns the map, clusters and neighbours of at least 3 images."""
    unit = encoded.features / np.maximum(
        np.linalg.norm(encoded.features, axis=1, keepdims=True), 1e-12
    )
    count = len(encoded.class_names) or min(_CLUSTERS, len(unit))
    clusters = MiniBatchKMeans(min(count, len(unit)), random_state=0).fit_predict(unit)
    own = np.arange(len(unit), dtype=np.int32)
    k = min(_VOTERS, len(unit) - 1)
    cosines, neighbours = nearest(unit, unit, k=k, layout=layout, own=own, among="others")
    predicted = None if encoded.labels is None else _votes(cosines, encoded.labels[neighbours])
    places, method = _map(unit)
    return Space(places, method, clusters.astype(np.int32), cosines, neighbours, predicted)


def closest_pairs(space: Space, count: int) -> list[tuple[int, int, float]]:
    """Returns the pairs of images with the largest cosines: image, image, cosine."""
    first = np.arange(len(space.neighbours))
    second, cosines = space.neighbours[:, 0], space.cosines[:, 0]
    pairs = {}
    for row in np.argsort(-cosines, kind="stable"):
        pair = tuple(sorted((int(first[row]), int(second[row]))))
        pairs.setdefault(pair, float(cosines[row]))
        if len(pairs) == count:
            break
    return [(a, b, cosine) for (a, b), cosine in pairs.items()]


def _some(source: Source, images: int, seed: int) -> Source:
    chosen = subset(len(source), images, seed)
    labels = None if source.labels is None else np.asarray(source.labels)[chosen]
    names = [source.names[int(i)] for i in chosen]
    read = lambda index: source.read(int(chosen[index]))  # noqa: E731
    return Source(source.name, read, names, labels, source.class_names)


def _thumbnails(source: Source, indices: np.ndarray, data: ConfigDict) -> np.ndarray:
    reader = Reader(source, decoding_of(data), max_bad_fraction=1.0)
    found = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
    for row, index in enumerate(indices):
        image = reader.read(int(index))
        if image is None:
            continue
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        found[row] = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return found


def _map(unit: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns places f32[N, 2] of unit vectors, and the method: UMAP if it is installed, or PCA."""
    if (umap := _umap()) and len(unit) > 15:
        found = umap(metric="cosine", random_state=0, n_jobs=1).fit_transform(unit)
        return np.asarray(found, np.float32), "UMAP"
    centred = unit - unit.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = (centred @ axes[:2].T).astype(np.float32)
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1]))), "PCA"


def _umap() -> Any:
    """Returns the class UMAP, or None; a folder named umap may be where Python looks."""
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return UMAP


def _votes(cosines: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the class i32[N] with most votes among neighbours of these classes [N, k]."""
    votes = np.zeros((len(labels), labels.max() + 1))
    weights = np.exp((cosines - cosines[:, :1]) / _TEMPERATURE)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes.argmax(axis=1).astype(np.int32)
