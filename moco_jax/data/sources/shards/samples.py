"""Lists the samples of one shard: an image, and labels in files of the same key beside it.

A key is the path of a member up to the first dot of its base name, as in webdataset.
"""

import collections
import dataclasses
import json
import os
from typing import BinaryIO

import numpy as np

from moco_jax.data.sources.archives import tar_index
from moco_jax.data.sources.archives.members import clean
from moco_jax.data.sources.file_types import is_hidden, is_image
from moco_jax.data.sources.packed_names import pack
from moco_jax.data.sources.storage.files import open_file, stream

# Kinds of labels: the files .cls and .txt, and these keys of .json. The first one that all images
# have is used.
JSON_KEYS = (
    "class_name", "label_name", "category_name", "class", "label", "category", "cls", "target",
    "class_id", "label_id", "category_id",
)  # fmt: skip
KINDS = (".cls", *(f".json {key}" for key in JSON_KEYS), ".txt")
_MAX_BYTES = {"cls": 1024, "txt": 1024, "json": 1 << 20}
_SPACES = " \t\r\n"  # around the text of a .cls or .txt; other white space may be a part of a name
MOST_CHARACTERS = 200  # of the name of a class
_MOST_VALUES = 1000  # of labels in a shard, or a quarter of its images; more are no classes
_SHOWN = 5  # names of what is left out
_MOST_SIZE = (1 << 32) - 1


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one kind in a shard."""

    codes: np.ndarray  # int32 [N], rows of the table; -1 for an image without a label
    text: np.ndarray  # uint8, the texts of the table
    lengths: np.ndarray  # uint32 [T], their bytes

    def table(self) -> list[str]:
        """Returns the texts."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        data = self.text.tobytes()
        return [
            data[end - length : end].decode("utf-8", "replace")
            for end, length in zip(ends.tolist(), self.lengths.tolist(), strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images of a shard, in its order, and what else it has."""

    offsets: np.ndarray  # int64 [N], of the images, in bytes
    sizes: np.ndarray  # uint32 [N], in bytes
    text: np.ndarray  # uint8, the names: 'shard.tar/path' of each
    lengths: np.ndarray  # uint32 [N], their bytes
    labels: dict[str, Labels]  # by kind
    left_out: dict[str, tuple[int, list[str]]]  # what: how many, and the names of the first ones
    endings: dict[str, int]  # of files that are neither images nor labels
    warnings: list[str]

    def __len__(self) -> int:
        return len(self.offsets)


@dataclasses.dataclass
class _Sample:
    images: dict[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


class _Lister:
    """Collects the samples of a shard."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.samples: dict[str, _Sample] = {}
        self.left_out: dict[str, tuple[int, list[str]]] = {}
        self.endings: collections.Counter[str] = collections.Counter()

    def add(self, member: tar_index.Member) -> None:
        path = clean(member.name)
        parts = path.split("/")
        if ".." in parts or "\0" in path:
            self.leave_out("name outside of the archive", path)
        elif not path or member.kind == "folder" or any(map(is_hidden, parts)):
            return
        elif member.kind != "file":
            self.leave_out(member.kind, path)
        else:
            key, ending = split_key(path)
            sample = self.samples.setdefault(key, _Sample())
            if is_image(path):
                if ending in sample.images:
                    self.leave_out("image whose name is there again", path)
                sample.images[ending] = path, member.offset, member.size
            elif ending in _MAX_BYTES:
                if member.size <= _MAX_BYTES[ending]:
                    sample.labels |= _labels(ending, self._read(member))
            else:
                self.endings[os.path.splitext(path)[1].lower() or "(no ending)"] += 1

    def images(self) -> list[tuple[str, int, int, dict[str, str]]]:
        """Returns name, offset, size and labels of each image."""
        found = []
        for key, sample in self.samples.items():
            images = sample.images
            if len(images) > 1:  # '1.jpg' is the image of '1.seg.png'
                images = {ending: image for ending, image in images.items() if "." not in ending}
            if len(images) == 1:
                found.append((*next(iter(images.values())), sample.labels))
                for ending in sample.images.keys() - images.keys():
                    self.endings[f".{ending}"] += 1
            elif sample.images:
                self.leave_out("sample with several images", key)
            else:
                self.leave_out("sample without an image", key)
        return found

    def leave_out(self, what: str, name: str) -> None:
        count, names = self.left_out.get(what, (0, []))
        self.left_out[what] = count + 1, names if count >= _SHOWN else [*names, name]

    def _read(self, member: tar_index.Member) -> bytes:
        self._file.seek(member.offset)
        return self._file.read(member.size)


def list_samples(path: str) -> Samples:
    """Returns the samples of a shard, an uncompressed tar.

    Raises:
      ValueError: if the shard is damaged; the message names it.
      OSError: if it can't be read.
    """
    warnings: list[str] = []
    with stream(open_file(path), buffering=0) as file:
        lister = _Lister(file)
        try:
            for member in tar_index.members(file, warnings.append):
                lister.add(member)
        except tar_index.DamagedTar as error:
            raise ValueError(f"the shard {path} is damaged or not a tar: {error}") from error
    images = lister.images()
    start = f"{os.path.basename(path)}/"
    text, lengths = pack([os.fsencode(start + name) for name, *_ in images])
    found = [labels for *_, labels in images]
    return Samples(
        np.fromiter((offset for _, offset, *_ in images), np.int64, len(images)),
        np.fromiter((min(size, _MOST_SIZE) for _, _, size, _ in images), np.uint32, len(images)),
        text,
        lengths,
        {kind: _coded(found, kind) for kind in KINDS if any(kind in own for own in found)},
        lister.left_out,
        dict(lister.endings),
        warnings,
    )


def split_key(path: str) -> tuple[str, str]:
    """Returns the key and the ending of a member: 'a/1.seg.png' gives 'a/1' and 'seg.png'."""
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    return folder + slash + stem, ending.lower()


def _labels(ending: str, data: bytes) -> dict[str, str]:
    """Returns {kind: text} of a file beside an image."""
    if ending != "json":
        text = data.decode("utf-8", "replace").strip(_SPACES)
        return {f".{ending}": text} if 0 < len(text) <= MOST_CHARACTERS else {}
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    found = {f".json {key}": content.get(key) for key in JSON_KEYS}
    return {
        kind: str(value)
        for kind, value in found.items()
        if type(value) in (str, int) and 0 < len(str(value)) <= MOST_CHARACTERS
    }


def _coded(found: list[dict[str, str]], kind: str) -> Labels:
    """Returns the labels of one kind; none of them if they are too many different ones."""
    table: dict[str, int] = {}
    codes = [table.setdefault(own[kind], len(table)) if kind in own else -1 for own in found]
    if len(table) > max(_MOST_VALUES, len(found) // 4):
        codes, table = [-1] * len(found), {}
    text, lengths = pack([name.encode("utf-8", "replace") for name in table])
    return Labels(np.array(codes, np.int32), text, lengths)
