"""What a data set is here: images by index, with labels where there are any.

Every kind of data set (a folder, an archive, arrays, TFDS) becomes a `Source`; `sources.py` opens
them. The functions below make sources from arrays and from other sources.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

# The kNN monitor compares every held-out image with all the others; more would only cost time.
MAX_HELD_OUT = 10_000


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by index.

    Attributes:
      name: what it is, for messages, such as "cifar10.tar.gz, train".
      read: gives one image, an encoded image file's bytes or a decoded uint8 array [H, W, 3],
        [H, W] or [H, W, 1]. Safe to call from several threads at once.
      names: [N], how a person finds each image: a path, a member of an archive, a TFDS index.
      labels: int32 [N], or None where there are no classes.
      class_names: by label; () where there are no classes.
    """

    name: str
    read: Callable[[int], bytes | np.ndarray]
    names: Sequence[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Images to train on, and held-out labelled ones for the kNN monitor (None: there are none).

    Labels of both count the same classes: `train.class_names == test.class_names`, unless train
    has no classes.
    """

    train: Source
    test: Source | None


class _NumberedNames(Sequence):
    """'name/0', 'name/1', ...: made when asked for, since a million strings take 100 MB."""

    def __init__(self, name: str, length: int):
        self._name, self._length = name, length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(self._length)[index]]
        return f"{self._name}/{range(self._length)[index]}"


def numbered_names(name: str, length: int) -> Sequence[str]:
    """Returns the names 'name/0' to 'name/<length - 1>' of images that have no other."""
    return _NumberedNames(name, length)


def array_source(images, labels=None, name="arrays", class_names=()) -> Source:
    """Returns a source of images held in memory.

    Args:
      images: uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W].
      labels: integers [N] from 0 up, or None.
      name: for messages and the images' names.
      class_names: by label; where left out, the labels' numbers.

    Raises:
      ValueError: a type, shape, length or label that is not allowed; it says which, and what is.
    """
    images = np.asarray(images)
    _check_images(images, name)
    if labels is None:
        return Source(name, images.__getitem__, numbered_names(name, len(images)), None, ())
    labels = _checked_labels(np.asarray(labels), len(images), name)
    class_names = tuple(class_names) or tuple(str(c) for c in range(labels.max() + 1))
    if labels.max() >= len(class_names):
        raise ValueError(
            f"{name}: label {labels.max()} has no class name; got {len(class_names)} names"
        )
    names = numbered_names(name, len(images))
    return Source(name, images.__getitem__, names, labels, class_names)


def _check_images(images: np.ndarray, name: str) -> None:
    """Raises a ValueError unless images is uint8 [N >= 1, H, W(, 1 or 3)]."""
    if images.dtype != np.uint8:
        hint = "; scale images in [0, 1] by 255 first" if images.dtype.kind == "f" else ""
        raise ValueError(f"{name}: images are {images.dtype}; allowed: uint8 (0 to 255){hint}")
    if images.ndim != 3 and (images.ndim != 4 or images.shape[3] not in (1, 3)):
        hint = "; move the channels last first" if images.ndim == 4 else ""
        raise ValueError(
            f"{name}: images have the shape {images.shape}; "
            f"allowed: [N, H, W, 3], [N, H, W, 1] or [N, H, W]{hint}"
        )
    if 0 in images.shape:
        raise ValueError(f"{name}: images have the shape {images.shape}: there are no images")


def _checked_labels(labels: np.ndarray, length: int, name: str) -> np.ndarray:
    """Returns labels as int32 [N], or raises a ValueError."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels are {labels.dtype}; allowed: integers")
    if labels.shape != (length,):
        raise ValueError(
            f"{name}: labels have the shape {labels.shape}; "
            f"allowed: ({length},), one for each of the {length} images"
        )
    if labels.min() < 0:
        raise ValueError(f"{name}: the smallest label is {labels.min()}; allowed: 0 and up")
    return labels.astype(np.int32)


def take(source: Source, indices: np.ndarray, name: str) -> Source:
    """Returns the images of a source at indices int [M], in that order, under another name."""

    def read(index: int) -> bytes | np.ndarray:
        return source.read(int(indices[index]))

    names = [source.names[int(i)] for i in indices]
    labels = None if source.labels is None else source.labels[indices]
    return Source(name, read, names, labels, source.class_names)


def hold_out(source: Source, fraction: float, seed: int) -> Sources:
    """Splits a source into train and a held-out test, class by class.

    Each class gives its fraction, at least one image where it has two or more, and never its last;
    all together at most MAX_HELD_OUT. Nothing is held out at fraction 0 or without labels.

    Raises:
      ValueError: fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(
            f"held_out is a fraction of the images; got {fraction}, allowed: 0 <= x < 1"
        )
    if fraction == 0 or source.labels is None:
        return Sources(source, None)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source))
    by_class = np.split(
        order[np.argsort(source.labels[order], kind="stable")],
        np.cumsum(np.bincount(source.labels))[:-1],
    )
    counts = _held_out_counts(np.array([len(members) for members in by_class]), fraction)
    chosen = [members[:n] for members, n in zip(by_class, counts, strict=True)]
    # With more classes than MAX_HELD_OUT not every class can have its one.
    test = np.sort(rng.permutation(np.concatenate(chosen))[:MAX_HELD_OUT])
    if not len(test):
        return Sources(source, None)
    rest = np.delete(np.arange(len(source)), test)
    return Sources(take(source, rest, source.name), take(source, test, f"{source.name}, held out"))


def _held_out_counts(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many images of each class are held out, int [C], from the classes' sizes."""
    wanted = sizes * fraction
    wanted = wanted * min(1.0, MAX_HELD_OUT / max(wanted.sum(), 1))
    most = np.maximum(sizes - 1, 0)
    return np.clip(np.floor(wanted + 0.5).astype(int), np.minimum(1, most), most)
