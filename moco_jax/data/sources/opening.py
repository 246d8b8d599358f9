"""Opens the data set that a config names.

    source='digits'         coloured digits, generated in memory
    source='images'         the images at `path`
    source='tfds:<name>'    a data set prepared by TensorFlow Datasets (TFDS)

`path` is a folder of image files, an archive of them (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz,
.zip), shards (a folder of tars, or a pattern such as 'a-{000..255}.tar'), an .npz of arrays, or,
with 'tfds:<name>', a TFDS data directory that has <name>. It may also be a folder of Parquet or
Arrow files, one such file, a list of paths (.csv, .tsv, .jsonl, .txt), or several of all these,
joined by '+'. All but .npz and Arrow files may lie in a bucket or behind another
URL: s3://bucket/x.tar, https://host/x.tar.
"""

import dataclasses
import os
import shlex
from typing import Any

from ml_collections import ConfigDict

from moco_jax.data.sources import digits, image_files, joined, tfds_source
from moco_jax.data.sources.archives import npz_file, tar_archive, zip_archive
from moco_jax.data.sources.file_types import counted, cut, is_image
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.regular_file import kind
from moco_jax.data.sources.shards import patterns, shard_set
from moco_jax.data.sources.source import (
    Opened,
    Source,
    Sources,
    array_source,
    hold_out,
    one_image_a_class,
)
from moco_jax.data.sources.storage import bucket_folders, image_cache
from moco_jax.data.sources.storage.files import open_file
from moco_jax.data.sources.tables import files, list_file, lists
from moco_jax.terminal.paths import is_pattern, is_url, mistyped_url, parts

_KNOWN = "digits, images (with a path), tfds:<name>"
# Of `data` in a config.
_KEYS = (
    *("source", "path", "held_out", "train_split", "test_split", "class_folders", "exclude"),
    *("image_column", "label_column", "max_bad_fraction", "cache_gigabytes"),
)
# Archives that are not read: what unpacks them into a folder.
_UNPACK = {
    ".7z": "7z x {file} -o{folder}",
    ".rar": "mkdir {folder} && unrar x {file} {folder}/",
    ".tar.zst": "mkdir {folder} && tar --zstd -xf {file} -C {folder}",
    ".tar.lz4": "mkdir {folder} && lz4 -dc {file} | tar -x -C {folder}",
}
_ON_DISK = (".npz", ".arrow")  # their readers map or load the whole file
_MAGIC = {zip_archive.MAGIC: ".zip", b"7z\xbc\xaf\x27\x1c": ".7z", b"Rar!\x1a\x07": ".rar"}


def open_named(config: ConfigDict, **changes: Any) -> Sources:
    """Returns the train and test images of a whole config; `changes` are for `open_sources`."""
    options = {key: config.data[key] for key in _KEYS} | changes
    return open_sources(seed=config.seed, **options)


def open_whole(config: ConfigDict) -> Sources:
    """Returns the train images of a whole config without holding any out."""
    return open_named(config, held_out=0.0, test_split="")


def open_sources(
    *,
    source: str,
    path: str,
    held_out: float,
    seed: int,
    train_split: str = "train",
    test_split: str = "test",
    class_folders: str = "first",
    exclude: str = "",
    image_column: str = "",
    label_column: str = "",
    max_bad_fraction: float = 0.01,
    cache_gigabytes: float = 0.0,
) -> Sources:
    """Returns the train images and the labelled test images, with notes about both.

    Args:
      source: 'digits', 'images' or 'tfds:<name>'.
      path: where the images are; '' if the source needs no path. '~' is expanded. Several paths are
        joined by '+'.
      held_out: fraction of each class that moves from train to test if there is no test split;
        0 for none.
      seed: selects the held-out images.
      train_split: the folder or TFDS split to train on; '' if all folders are classes. 'train' (the
        default) also stands for other names of this split, such as 'Training'. Digits and .npz
        ignore it.
      test_split: the folder or TFDS split to test on; '' for none. If 'test' (the default) is
        absent, other names of test and validation splits are tried, and then `held_out` applies.
        Any other name must exist.
      class_folders: 'first' or 'leaf', see `folders.CLASS_FOLDERS`.
      exclude: names of folders that are left out, separated by commas.
      image_column, label_column: of a table; '' to find them.
      max_bad_fraction: of the rows of a list that can't be read; more of them are an error.
      cache_gigabytes: images of buckets that are kept on the disk, in GB; 0 for none.

    Raises:
      ValueError: if the source is unknown, the path holds no images, the data are damaged, or a
        split does not exist.
      OSError: if the path is absent or can't be read.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"data.held_out must be a fraction in [0, 1); got {held_out}")
    if source not in ("digits", "images") and not source.startswith("tfds:"):
        raise ValueError(f"data.source={source!r} is unknown; allowed: {_KNOWN}")
    keys = Keys(
        *(train_split, test_split, class_folders, exclude),
        *(image_column, label_column, max_bad_fraction),
    )
    try:
        paths = parts(path)
        with image_cache.keeping(cache_gigabytes):
            opened = [_marked(_open(source, part, keys), part) for part in paths]
        opened = joined.join(opened, paths) if len(paths) > 1 else opened[0]
    except OSError as error:
        if not error.filename or not path:  # the message says what to correct
            raise
        raise type(error)(f"--config.data.path={path}: {error}") from error
    sources = Sources(opened.train, opened.test)
    if opened.test is None:
        sources = hold_out(opened.train, held_out, seed)
    tested = bool(test_split or held_out)
    notes = _notes(opened, sources, held_out, tested)
    if cache_gigabytes and sources.train.remote:
        notes += (image_cache.note(cache_gigabytes),)
    return dataclasses.replace(sources, notes=notes)


def _notes(opened: Opened, sources: Sources, held_out: float, tested: bool) -> tuple[str, ...]:
    """Returns the lines about the data set, the summary first."""
    train, test = sources.train, sources.test
    why = f" ({opened.about_test})" if opened.about_test else ""
    key = "test_split=..." if why else f"held_out={held_out:g}"
    parts = [_classes(opened)]
    if not tested:
        parts.append(f"{_images(train, opened.train_in)}")
    else:
        parts.append(f"train: {_images(train, opened.train_in)}")
        if opened.test is not None:
            change = f": --config.data.{key}" if why else ""
            parts.append(f"test: {_images(opened.test, opened.test_in)}{why}{change}")
        elif test is not None:
            place = f" of {opened.train_in}" if opened.train_in else ""
            parts.append(f"test: {len(test)} held out{place}{why}: --config.data.{key}")
        else:
            parts.append(f"no test images{why}")
    lines = ["; ".join(parts)]
    if test is None and held_out and one_image_a_class(train):
        lines.append(
            f"warning: each of the {len(train)} classes has one image, so none can be held out; "
            "are these folders classes?"
        )
    return (*lines, *opened.notes)


def _classes(opened: Opened) -> str:
    names = opened.train.class_names
    if not names:
        return "no classes"
    return f"{len(names)} classes: {cut(names)}"


def _images(source: Source, place: str) -> str:
    return counted(len(source), "image") + (f" in {place}" if place else "")


def _marked(opened: Opened, path: str) -> Opened:
    """Returns a data set that knows whether its path is in a bucket."""
    if not is_url(path):
        return opened
    train, test = (
        source and dataclasses.replace(source, remote=True)
        for source in (opened.train, opened.test)
    )
    return dataclasses.replace(opened, train=train, test=test)


def _open(source: str, path: str, keys: Keys) -> Opened:
    """Returns the splits that the data set itself has."""
    name = source.partition("tfds:")[2]
    if source == "tfds:":
        raise ValueError("data.source='tfds:' must name a data set, such as 'tfds:cifar10'")
    if not path:
        if source == "digits":
            return _open_digits()
        if name:
            return tfds_source.open_tfds(name, "", keys.train_split, keys.test_split)
        raise ValueError(
            "data.source='images' needs data.path: a folder, an archive, shards, an .npz, "
            "a .parquet or a list of paths"
        )
    if is_pattern(path):
        return shard_set.open_pattern(path, keys)
    if is_url(path):
        return _open_url(path, keys)
    if not os.path.exists(path):
        url = mistyped_url(path)
        raise FileNotFoundError(
            f"there is no file or folder {path}: correct --config.data.path, or the path after the "
            f"config file{f'; did you mean {url}?' if url else ''}"
        )
    if not os.path.isdir(path):
        return _open_file(path, keys)
    if name and tfds_source.holds_dataset(path, name):
        return tfds_source.open_tfds(name, path, keys.train_split, keys.test_split)
    if shards := patterns.in_folder(path):
        return shard_set.open_folder(path, shards, keys)
    try:
        return image_files.open_folder(path, keys)
    except ValueError as error:
        if not name:
            raise
        raise ValueError(
            f"{error}.\nIt does not hold the TFDS data set {name!r} either. "
            f"{tfds_source.how_to_prepare(name, path)}"
        ) from error


def _open_url(url: str, keys: Keys) -> Opened:
    """Returns the splits of an object in a bucket, or of the objects below a folder."""
    if url.lower().endswith(_ON_DISK):
        raise ValueError(
            f"{url} can't be read in a bucket: copy it to a disk, and set --config.data.path to "
            "the copy"
        )
    try:
        open_file(url)
    except FileNotFoundError:
        return bucket_folders.open_folder(url, keys)
    return _open_file(url, keys)


def _open_file(path: str, keys: Keys) -> Opened:
    """Returns the splits of an archive or an .npz; the file name decides which it is."""
    lower = path.lower()
    endings = (*tar_archive.EXTENSIONS, zip_archive.EXTENSION, ".npz")
    endings += (*files.EXTENSIONS, *list_file.EXTENSIONS)
    allowed = f"allowed: a folder, or {', '.join(endings)}"
    if not is_url(path) and (what := kind(os.stat(path).st_mode)):
        raise ValueError(f"can't open {path}: it is {what}; {allowed}")
    if lower.endswith(".npz"):
        return npz_file.open_npz(path)
    ending = _archive(path)
    if ending == zip_archive.EXTENSION:
        return zip_archive.open_zip(path, keys)
    if ending:
        folder = shlex.quote(path[: -len(ending)] if lower.endswith(ending) else f"{path}_unpacked")
        command = _UNPACK[ending].format(file=shlex.quote(path), folder=folder)
        raise ValueError(
            f"{path} is a {ending[1:]} archive, which can't be read by index; unpack it, and set "
            f"--config.data.path={folder}:\n  {command}"
        )
    if lower.endswith(files.EXTENSIONS):
        return files.open_file(path, keys)
    if lower.endswith(list_file.EXTENSIONS):
        return lists.open_list(path, keys)
    if lower.endswith(tar_archive.EXTENSIONS):
        return tar_archive.open_tar(path, keys)
    what = " (a single image)" if is_image(path) else ""
    raise ValueError(f"can't open the file {path}{what}; {allowed}")


def _archive(path: str) -> str:
    """Returns the ending of an archive that is no tar, by its first bytes or its name; or ''."""
    start = open_file(path).read_at(0, 8)
    by_content = (ending for magic, ending in _MAGIC.items() if start.startswith(magic))
    by_name = (ending for ending in (*_UNPACK, ".zip") if path.lower().endswith(ending))
    return next(by_content, next(by_name, ""))


def _open_digits() -> Opened:
    """Returns the digits data set."""
    train, test = (
        array_source(*digits.digits(split), f"digits/{split}", digits.CLASS_NAMES)
        for split in ("train", "test")
    )
    return Opened(train, test)
