"""Converts the images of a source to shards: tars of images with labels, and an index of each.

A shard gets its name when it is complete and its digest is verified. shards.json lists the finished
ones, so an interrupted conversion continues with the next.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from moco_jax.data.prepare.encoding import Encoding, common_folder, key_and_ending
from moco_jax.data.prepare.reading import Read, read_images
from moco_jax.data.sources.class_names import plain
from moco_jax.data.sources.file_types import counted, listed
from moco_jax.data.sources.shards import about_file
from moco_jax.data.sources.shards.index_file import open_shard
from moco_jax.data.sources.source import NO_LABEL, Source, Sources, fingerprint
from moco_jax.terminal import logs, progress
from moco_jax.text import printable

_INCOMPLETE = ".incomplete-"
_READ_BYTES = 4 << 20
_SHOWN = 10  # unreadable images of a shard that are named


def convert(
    sources: Sources,
    out: pathlib.Path,
    encoding: Encoding,
    *,
    images_per_shard: int,
    max_bad_fraction: float,
    threads: int,
) -> None:
    """Writes the splits of a data set as shards; prints what is written.

    Args:
      out: a folder: new, empty, or of the same conversion, which continues.
      encoding: how images are encoded again.
      images_per_shard: of each shard but the last of a split.
      max_bad_fraction: the largest fraction of unreadable images of a split; they are left out.
      threads: that read and encode images.

    Raises:
      ValueError: if `out` has other contents, only some images have a label, or too many images
        can't be read.
      OSError: if the disk is full, or a file can't be read or written.
    """
    splits = {"train": sources.train} | ({"test": sources.test} if sources.test else {})
    if any(s.labels is not None and (s.labels == NO_LABEL).any() for s in splits.values()):
        raise ValueError(
            "some images have a label and others have none; in shards all images of a split or "
            "none have one: convert each data set by itself, and join the shards by '+'"
        )
    about = _about(splits, encoding, images_per_shard)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        about = _continued(out, about)
        if about["complete"]:
            print("already converted")
        total = sum(map(len, splits.values()))
        with (
            progress.bar(total, "converting", unit="images") as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            for split, source in splits.items():
                left = {
                    name: rows
                    for name, rows in _rows(split, len(source), images_per_shard)
                    if not _is_finished(out / name, about)
                }
                bar.update(len(source) - sum(map(len, left.values())))
                whole = np.concatenate([np.zeros(0, np.int64), *left.values()])
                images = read_images(source, whole, encoding, pool, bar.update)
                folder, bad = common_folder(source.names), _left_out(about, split)
                for name, rows in left.items():
                    made = _Shard(source, folder, itertools.islice(images, len(rows)))
                    about["shards"][name] = _written(out / name, made)
                    bad += about["shards"][name]["left_out"]
                    _check_bad(bad, source, max_bad_fraction)
                    _save(out, about)
        _save(out, about | {"complete": True})
    _report(out, about, splits)


def _rows(split: str, images: int, images_per_shard: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each shard of a split, and its rows int64 of the source."""
    for number, start in enumerate(range(0, images, images_per_shard)):
        yield f"{split}-{number:06}.tar", np.arange(start, min(start + images_per_shard, images))


def _about(splits: dict[str, Source], encoding: Encoding, images_per_shard: int) -> dict[str, Any]:
    """Returns the contents of shards.json before anything is written."""
    names = next((source.class_names for source in splits.values() if source.class_names), ())
    return {
        "written_by": about_file.WRITER,
        "complete": False,
        "class_names": list(map(plain, names)),
        "source": {split: fingerprint(source) for split, source in splits.items()},
        "options": {
            "side": encoding.side,
            "quality": encoding.quality,
            "images_per_shard": images_per_shard,
        },
        "shards": {},
    }


def _continued(out: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns shards.json of the folder, or `about` for a new conversion.

    Raises:
      ValueError: if the folder holds anything else.
    """
    known = about_file.read(str(out))
    if not known:
        found = sorted(name for name in os.listdir(out) if name != _temporary(out).name)
        if found:
            raise ValueError(
                f"--out={out} holds other files ({listed(found, 3)}); allowed: a new or an empty "
                "folder, or one of the same conversion"
            )
        _save(out, about)
        return about
    if not about_file.is_converted(known):
        raise ValueError(f"--out={out} holds shards that this command did not write")
    for key, what in (("options", "flags"), ("class_names", "classes"), ("source", "images")):
        if known.get(key) != about[key]:
            raise ValueError(
                f"--out={out} holds a conversion of other {what} "
                f"({_shortly(known.get(key))}, now {_shortly(about[key])}); choose another --out"
            )
    if not _are_entries(known.get("shards")):
        raise ValueError(f"{out / about_file.NAME} is damaged: its list of shards can't be used")
    for stale in out.glob(f"{_INCOMPLETE}*"):
        stale.unlink()
    return {**about, "complete": known.get("complete") is True, "shards": known["shards"]}


def _are_entries(shards: Any) -> bool:
    """Returns whether a value of shards.json is a list of finished shards."""
    return isinstance(shards, dict) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), int) for key in ("images", "bytes"))
        and isinstance(entry.get("left_out"), list)
        and all(isinstance(name, str) for name in entry["left_out"])
        for entry in shards.values()
    )


def _shortly(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_finished(target: pathlib.Path, about: dict[str, Any]) -> bool:
    entry = about["shards"].get(target.name)
    return bool(entry) and target.is_file() and target.stat().st_size == entry["bytes"]


def _left_out(about: dict[str, Any], split: str) -> list[str]:
    """Returns the names that finished shards of a split left out."""
    entries = [x for name, x in about["shards"].items() if name.startswith(f"{split}-")]
    return [name for entry in entries for name in entry["left_out"]]


class _Shard:
    """Makes the samples of one shard."""

    def __init__(self, source: Source, folder: str, images: Iterator[Read]):
        self._source, self._folder, self._images = source, folder, images
        self.left_out: list[str] = []

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yields (name, bytes) of the images and labels of a shard."""
        used: set[str] = set()
        labels = self._source.labels
        for index, data, ending, problem in self._images:
            name = self._source.names[index]
            if problem:
                self.left_out.append(printable(name))
                if len(self.left_out) <= _SHOWN:
                    logs.warning("left out %s (%s)", printable(name), problem)
                continue
            key, own = key_and_ending(name[len(self._folder) :], index, data)
            while key in used:
                key += "_"
            used.add(key)
            yield key + (ending or own), data
            if labels is not None:
                yield f"{key}.cls", b"%d" % labels[index]


class _Hashing(io.RawIOBase):
    """A file to write that knows its digest."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, data, /) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _written(target: pathlib.Path, made: _Shard) -> dict[str, Any]:
    """Writes a shard and its index, and returns its entry in shards.json.

    Raises:
      OSError: if it can't be written, or its bytes on the disk are others.
    """
    temporary = target.with_name(f"{_INCOMPLETE}{target.name}")
    try:
        with open(temporary, "wb") as file:
            hashing, count = _Hashing(file), 0
            with tarfile.open(
                fileobj=hashing,
                mode="w|",
                format=tarfile.PAX_FORMAT,
                encoding="utf-8",
                errors="surrogateescape",
            ) as archive:
                for name, data in made.members():
                    member = tarfile.TarInfo(name)  # of time 0 and no owner: the same bytes again
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                    count += not name.endswith(".cls")
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        if _digest(temporary) != hashing.hexdigest():
            raise OSError(f"the bytes of {temporary} on the disk are not those that were written")
        os.replace(temporary, target)
    except OSError as error:
        if error.errno != errno.ENOSPC and error.errno != errno.EDQUOT:
            raise
        raise OSError(
            f"can't write {target}: {error.strerror}; free some space, and run the same command "
            "again to continue"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if (found := len(open_shard(str(target)).samples)) != count:
        raise OSError(f"{target} has {found} images, but {count} were written")
    left_out = made.left_out
    return {"images": count, "bytes": size, "digest": hashing.hexdigest(), "left_out": left_out}


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_bad(bad: list[str], source: Source, most: float) -> None:
    if len(bad) > max(1, most * len(source)):  # a small source may have one
        raise ValueError(
            f"{len(bad)} of the {len(source)} images of {source.name} can't be read, more than "
            f"--max_bad_fraction={most:g} allows; the last one is {bad[-1]}"
        )


@contextlib.contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing to the folder."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"another process writes to --out={out}; wait for its end") from error
    finally:
        os.close(descriptor)


def _save(out: pathlib.Path, about: dict[str, Any]) -> None:
    _temporary(out).write_text(json.dumps(about, indent=1))
    os.replace(_temporary(out), out / about_file.NAME)


def _temporary(out: pathlib.Path) -> pathlib.Path:
    """Returns the name of shards.json while it is written."""
    return out / f"{_INCOMPLETE}{about_file.NAME}"


def _report(out: pathlib.Path, about: dict[str, Any], splits: dict[str, Source]) -> None:
    """Prints what was written."""
    for split in splits:
        entries = [x for name, x in about["shards"].items() if name.startswith(f"{split}-")]
        images, size = (sum(x[key] for x in entries) for key in ("images", "bytes"))
        bad = sum(len(x["left_out"]) for x in entries)
        more = f"; {counted(bad, 'unreadable image')} left out" if bad else ""
        print(f"{split}: {images} images in {counted(len(entries), 'shard')}, {size:,} bytes{more}")
    print(f"train on them with --config.data.path={out}")
