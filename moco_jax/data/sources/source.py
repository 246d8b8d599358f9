"""Defines `Source`: images by index, with optional labels.

Every kind of data set (folder, archive, arrays, TFDS) becomes a `Source`; `opening.py` opens them.
This module also makes sources from arrays and from other sources.
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from moco_jax.buckets.objects import BucketError
from moco_jax.data.sources.packed_names import PackedNames

# The kNN monitor compares every held-out image with all others; more images only cost time.
MAX_HELD_OUT = 10_000
_MOST_CLASSES = 100_000  # of arrays, or twice the images: each number up to the largest is a class
NO_LABEL = -1  # of an image without a label beside labelled ones
_CHUNK = 1 << 14  # names that are computed at once
_SAMPLED = 16  # images whose bytes are part of a fingerprint


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by index.

    `read` returns one image: the bytes of an image file, or a decoded uint8 array [H, W, 3], [H, W]
    or [H, W, 1]. It is safe to call from several threads at once.
    """

    name: str  # for messages, such as "cifar10.tar.gz, train"
    read: Callable[[int], bytes | np.ndarray]
    names: Sequence[str]  # [N], one per image: a path, a member of an archive, or a TFDS index
    labels: np.ndarray | None  # int32 [N], NO_LABEL without a label; None without classes
    class_names: tuple[str, ...]  # indexed by label; () without classes
    # int32 [N]: images of one group are read at once, as those of a compressed part of a file; None
    # if each image is read by itself.
    groups: np.ndarray | None = None
    remote: bool = False  # whether images are in a bucket, so that `read` waits for a network

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Sources:
    """The images to train on, and labelled test images (None if there are none).

    Both use the same classes: `train.class_names == test.class_names`, unless train has none.
    """

    train: Source
    test: Source | None
    notes: tuple[str, ...] = ()  # lines about what was guessed and left out, for the user
    selected: str = ""  # describes the labelled images in `train`, if others are left out already


@dataclasses.dataclass(frozen=True)
class Opened:
    """The splits that a data set itself has, and what the user should know about them."""

    train: Source
    test: Source | None
    notes: tuple[str, ...] = ()
    train_in: str = ""  # the folder or split, '' for all
    test_in: str = ""
    about_test: str = ""  # why these are the test images


def fingerprint(source: Source) -> str:
    """Returns the identity of the images, whatever their place, as 32 hexadecimal digits.

    It covers the number of images, their names in order, labels, class names, and the bytes of 16
    evenly spaced images. Names count without the folders that all of them are in, so a copy, a
    moved folder and a tar archive of the same files have the same fingerprint. Names that are only
    numbers do not count. An unreadable image counts as unreadable.
    """
    digest = hashlib.blake2b(digest_size=16)
    for length, parts in _described(source):
        digest.update(b"%d:" % length)
        for part in parts:
            digest.update(part)
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLED).round().astype(int)):
        digest.update(_sample(source, int(index)))
    return digest.hexdigest()


def _described(source: Source) -> list[tuple[int, Iterable[bytes]]]:
    """Returns all that a fingerprint covers besides the images: the length of each, and parts."""
    labels = b"" if source.labels is None else np.asarray(source.labels, "<i4").tobytes()
    count, classes = b"%d" % len(source), _text(source.class_names)
    whole = lambda data: (len(data), [data])  # noqa: E731
    return [whole(count), _names_in_folder(source.names), whole(labels), whole(classes)]


def _names_in_folder(names: Sequence[str]) -> tuple[int, Iterable[bytes]]:
    """Returns names without the folder that holds all of them: their length, and parts.

    Millions of names may be computed on access, so they are read twice, a part at a time.
    """
    if isinstance(names, NumberedNames) or not len(names):
        return 0, []
    if isinstance(names, PackedNames):
        return names.without_folder()
    least = most = names[0]
    length = len(names) - 1  # a NUL between two names
    for chunk in _chunks(names):
        least, most = min(least, min(chunk)), max(most, max(chunk))
        length += len(_text(chunk)) - (len(chunk) - 1)
    start = os.path.commonprefix([least, most]).rfind("/") + 1
    # A slash is not composed with an accent after it, so a folder has the same bytes in each name.
    length -= len(names) * len(_text([least[:start]]))
    return length, _joined(names, start)


def _joined(names: Sequence[str], start: int) -> Iterator[bytes]:
    """Yields names from a character on, with NUL between them, in parts."""
    between = b""
    for chunk in _chunks(names):
        yield between + _text([name[start:] for name in chunk])
        between = b"\0"


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))


def _text(parts: Sequence[str]) -> bytes:
    """Returns names as bytes; some file systems change the Unicode form of a name."""
    text = "\0".join(parts)
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return text.encode(errors="surrogatepass")


def _sample(source: Source, index: int) -> bytes:
    """Returns the digest of one image."""
    try:
        image = source.read(index)
    except BucketError:
        raise
    except Exception:  # the readers of TFDS raise many types
        return b"unreadable"
    if isinstance(image, np.ndarray):
        image = str((image.shape, image.dtype.str)).encode() + np.ascontiguousarray(image).tobytes()
    return hashlib.blake2b(image, digest_size=16).digest()


class NumberedNames(Sequence):
    """'name/0' to 'name/<length - 1>'; formatted on access, since a million strings take 100 MB."""

    def __init__(self, name: str, length: int):
        self._name, self._length = name, length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(self._length)[index]]
        return f"{self._name}/{range(self._length)[index]}"


class ComputedNames(Sequence):
    """Names that a function of their indices computes on access, many at once."""

    def __init__(self, length: int, at: Callable[[np.ndarray], list[str]]):
        """Keeps the function: indices int64 [M] -> M names."""
        self._length, self.at = length, at

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.at(np.arange(*index.indices(self._length)))
        return self.at(np.array([range(self._length)[index]]))[0]


def names_at(names: Sequence[str], indices: np.ndarray) -> list[str]:
    """Returns the names at indices int64 [M]."""
    if isinstance(names, ComputedNames):
        return names.at(indices)
    return [names[int(index)] for index in indices]


def array_source(images, labels=None, name="arrays", class_names=()) -> Source:
    """Returns a source of images held in memory.

    Args:
      images: uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W].
      labels: integers [N] from 0 up, or None.
      name: for messages and the images' names.
      class_names: indexed by label; the default is the numbers of the labels.

    Raises:
      ValueError: if a dtype, a shape, a length or a label is not allowed.
    """
    images = np.asarray(images)
    _check_images(images, name)
    names = NumberedNames(name, len(images))
    if labels is None:
        return Source(name, images.__getitem__, names, None, ())
    labels = _checked_labels(np.asarray(labels), len(images), name)
    class_names = tuple(class_names) or tuple(str(c) for c in range(labels.max() + 1))
    if labels.max() >= len(class_names):
        raise ValueError(
            f"{name}: label {labels.max()} has no class name; got {len(class_names)} names"
        )
    return Source(name, images.__getitem__, names, labels, class_names)


def _check_images(images: np.ndarray, name: str) -> None:
    """Raises a ValueError unless images is uint8 [N >= 1, H, W(, 1 or 3)]."""
    if images.dtype != np.uint8:
        hint = "; scale images in [0, 1] by 255" if images.dtype.kind == "f" else ""
        raise ValueError(f"{name}: images are {images.dtype}; allowed: uint8 (0 to 255){hint}")
    if images.ndim != 3 and (images.ndim != 4 or images.shape[3] not in (1, 3)):
        hint = "; move the channels to the last axis" if images.ndim == 4 else ""
        raise ValueError(
            f"{name}: images have the shape {images.shape}; "
            f"allowed: [N, H, W, 3], [N, H, W, 1] or [N, H, W]{hint}"
        )
    if 0 in images.shape:
        raise ValueError(f"{name}: images have the shape {images.shape}; no axis may be 0")


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
    most = max(_MOST_CLASSES, 2 * length)
    if labels.max() >= most:
        raise ValueError(
            f"{name}: the largest label is {labels.max()}; allowed: below {most} with {length} "
            "images. Number the classes from 0 without gaps"
        )
    return labels.astype(np.int32)


def take(source: Source, indices: np.ndarray, name: str) -> Source:
    """Returns the images of a source at indices int [M], in that order, with another name."""
    if isinstance(source.names, PackedNames):
        names = source.names.take(indices)
    else:
        names = ComputedNames(len(indices), lambda rows: names_at(source.names, indices[rows]))
    labels = None if source.labels is None else source.labels[indices]
    groups = None if source.groups is None else source.groups[indices]
    read = lambda i: source.read(int(indices[i]))  # noqa: E731
    changes = {"name": name, "read": read, "names": names, "labels": labels, "groups": groups}
    return dataclasses.replace(source, **changes)


def hold_out(source: Source, fraction: float, seed: int) -> Sources:
    """Returns a source split into train and a held-out test, class by class.

    Every class loses this fraction of its images. A class with two or more images loses at least
    one, and no class loses its last image. Images without a label stay in train. At most
    MAX_HELD_OUT images are held out, and none if the fraction is 0 or there are no labels.
    """
    if fraction == 0 or source.labels is None:
        return Sources(source, None)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source))
    order = order[source.labels[order] != NO_LABEL]
    order = order[np.argsort(source.labels[order], kind="stable")]
    sizes = np.bincount(source.labels[order])
    by_class = np.split(order, np.cumsum(sizes)[:-1])
    counts = _held_out_counts(sizes, fraction)
    chosen = [members[:n] for members, n in zip(by_class, counts, strict=True)]
    # With more classes than MAX_HELD_OUT, not every class can hold out an image.
    test = np.sort(rng.permutation(np.concatenate(chosen))[:MAX_HELD_OUT])
    if not len(test):
        return Sources(source, None)
    rest = np.delete(np.arange(len(source)), test)
    return Sources(take(source, rest, source.name), take(source, test, f"{source.name}, held out"))


def one_image_a_class(source: Source) -> bool:
    """Returns whether a source has classes, but none with two images."""
    return source.labels is not None and np.bincount(labelled_of(source.labels)).max() < 2


def labelled_of(labels: np.ndarray) -> np.ndarray:
    """Returns the labels of the images that have one."""
    return labels[labels != NO_LABEL]


def only_labelled(source: Source) -> Source:
    """Returns the images of a source with classes that have a label."""
    assert source.labels is not None
    kept = np.flatnonzero(source.labels != NO_LABEL)
    return source if len(kept) == len(source) else take(source, kept, source.name)


def _held_out_counts(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many images of each class are held out, int [C], from the class sizes [C]."""
    wanted = sizes * fraction
    wanted = wanted * min(1.0, MAX_HELD_OUT / max(wanted.sum(), 1))
    most = np.maximum(sizes - 1, 0)
    return np.clip(np.floor(wanted + 0.5).astype(int), np.minimum(1, most), most)
