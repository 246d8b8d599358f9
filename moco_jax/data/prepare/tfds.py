"""Makes a TFDS data set readable by index.

A data set in TFRecords is converted in place, without TensorFlow: array_record shards are added
beside them, and dataset_info.json lists both formats. TFDS's own convert_format does the same with
TensorFlow and Apache Beam. TFDS downloads and prepares a data set that is absent.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from grain.experimental import TFRecordIterDataset

from moco_jax.data.sources import tfds_source
from moco_jax.terminal import progress

_FORMAT = "array_record"
_INCOMPLETE = ".incomplete-"
_TF_MODULES = ("tensorflow", "importlib_resources")  # TFDS declares neither as a dependency
_INSTALL = (
    "TFDS needs TensorFlow to prepare this data set (not to read it); install it with\n"
    "  pip install 'moco-jax[tf]'"
)


class _Shard(NamedTuple):
    """A TFRecord file, the array_record file to write, and the number of records."""

    source: pathlib.Path
    target: pathlib.Path
    length: int


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> None:
    """Makes a data set readable by index, and prints what it does and where the data set is.

    Args:
      name, data_dir: as for `tfds_source.open_tfds`.
      manual_dir: folder of files downloaded by hand; '' for <data_dir>/downloads/manual.

    Raises:
      ValueError: if the name is unknown, TFRecords are damaged, or a package or a file must be
        installed or downloaded first.
      OSError: if the disk is full, or a folder can't be read or written.
    """
    data_dir = os.path.expanduser(data_dir)
    builder = tfds_source.open_builder(name, data_dir)
    formats = tfds_source.formats(builder)
    if not builder.info.splits:
        _generate(builder, name, manual_dir)
    elif formats & tfds_source.RANDOM_ACCESS:
        print("already prepared")
    elif "tfrecord" in formats:
        _convert(builder)
    else:
        raise ValueError(
            f"{builder.data_path} is prepared as {', '.join(sorted(formats))}; only tfrecord can "
            "be converted. Prepare the data set again with another --data_dir"
        )
    _report(tfds_source.open_builder(name, data_dir), name)


def _report(builder, name: str) -> None:
    """Prints the folder and the splits of the data set."""
    formats = tfds_source.formats(builder) & tfds_source.RANDOM_ACCESS
    if not (builder.info.splits and formats):
        raise ValueError(
            f"TFDS prepared nothing, because {builder.data_path} exists; if you do not need its "
            "contents, delete it and run this again"
        )
    print(f"{name} can be read by index ({', '.join(sorted(formats))}) in {builder.data_path}")
    for split in builder.info.splits.values():
        print(f"  {split.name}: {split.num_examples} records, {split.num_bytes}")


def _generate(builder, name: str, manual_dir: str) -> None:
    """Downloads and prepares a data set with TFDS, after checking for everything it needs."""
    import tensorflow_datasets as tfds

    default = os.path.join(builder.data_dir_root, "downloads", "manual")
    manual = pathlib.Path(manual_dir or default).expanduser()
    problems = []
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
        instructions = textwrap.dedent(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).strip()
        problems.append(
            f"some files must be downloaded by hand, into {manual} (or another --manual_dir), "
            f"which has none. TFDS says:\n{textwrap.indent(instructions, '  ')}"
        )
    # Builders of TFDS import TensorFlow late, often after a download of gigabytes.
    own = type(builder).__module__.startswith("tensorflow_datasets.")
    if own and not all(map(importlib.util.find_spec, _TF_MODULES)):
        problems.append(_INSTALL)
    if problems:
        raise ValueError("\n".join([f"{tfds_source.not_prepared(builder, name)}.", *problems]))
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    try:
        builder.download_and_prepare(file_format=_FORMAT, download_config=config)
    except Exception as error:  # a builder may raise anything
        if _lacks_tensorflow(error):
            raise ValueError(_INSTALL) from error
        kind = type(error).__name__
        raise ValueError(f"TFDS could not prepare {name!r}: {kind}: {error}") from error


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """Returns whether TensorFlow is missing, in an error that TFDS may have wrapped."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in _TF_MODULES:
            return True
        error = error.__cause__ or error.__context__
    return False


def _convert(builder) -> None:
    """Adds array_record shards to a data set in TFRecords; an interrupted conversion resumes."""
    shards = _shards(builder)
    info = pathlib.Path(builder.data_dir, "dataset_info.json")
    for folder in {info.parent, *(shard.target.parent for shard in shards)}:
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                f"{folder} holds the data set as tfrecord, but can't be written, and the "
                "converted shards must be in it; run this as its owner, or copy the folder"
            )
        for stale in folder.glob(f"{_INCOMPLETE}*"):
            stale.unlink()
    checked = progress.items(shards, len(shards), "checking", unit="shards")
    left = [shard for shard in checked if not _is_whole(shard)]
    missing = [shard.source for shard in left if not shard.source.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(left)} shards of TFRecords are missing, such as {missing[0]}"
        )
    _check_space(left)
    print(f"converting {len(left)} of {len(shards)} shards in {info.parent}", flush=True)
    for shard in progress.items(left, len(left), "converting", unit="shards"):
        _write(shard)
    _list_format(info)


def _shards(builder) -> list[_Shard]:
    shards = []
    for split in builder.info.splits.values():
        template, count = split.filename_template, split.num_shards
        files = [
            template.replace(filetype_suffix=suffix).sharded_filepaths(count)
            for suffix in ("tfrecord", _FORMAT)
        ]
        if not count or files[0] == files[1]:
            raise ValueError(
                f"can't convert the split {split.name!r} in {builder.data_path}: "
                "dataset_info.json has " + ("file names without a format" if count else "no shards")
            )
        files = [map(pathlib.Path, paths) for paths in files]
        shards += map(_Shard, *files, split.shard_lengths)
    return shards


def _is_whole(shard: _Shard) -> bool:
    """Returns whether a shard is already converted."""
    if not shard.target.exists():
        return False
    try:
        with contextlib.closing(ArrayRecordReader(str(shard.target))) as reader:
            return reader.ok() and reader.num_records() == shard.length
    except RuntimeError:  # a truncated file
        return False


def _check_space(shards: list[_Shard]) -> None:
    """Raises an OSError if the converted shards do not fit on the disk."""
    if not shards:
        return
    # array_record needs up to 60 bytes per record and 128 KiB per file more than TFRecords.
    needed = sum(1.01 * s.source.stat().st_size + 64 * s.length + 2**18 for s in shards)
    folder = shards[0].target.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the conversion needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
            f"{folder}"
        )


def _write(shard: _Shard) -> None:
    """Writes a shard as array_record; it gets its final name when it is complete."""
    temporary = _temporary(shard.target)
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # as TFDS: one record per read
        for record in _records(shard):
            writer.write(record)
        writer.close()
        os.replace(temporary, shard.target)
    except RuntimeError as error:  # of the writer, such as a full disk
        raise OSError(f"can't write {shard.target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _records(shard: _Shard) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Checksums are not verified: a record with flipped bits is copied as it is.

    Raises:
      ValueError: if the file is truncated or does not have `shard.length` records.
    """
    count = 0
    try:
        for record in TFRecordIterDataset(str(shard.source)):
            yield record
            count += 1
    except (ValueError, OverflowError, MemoryError) as error:  # a truncated file or a wrong length
        problem = f"it can't be read beyond record {count} of {shard.length}"
        raise ValueError(f"{shard.source} is damaged: {problem}") from error
    if count != shard.length:
        problem = f"it holds {count} records, but dataset_info.json lists {shard.length}"
        raise ValueError(f"{shard.source} is damaged: {problem}")


def _list_format(path: pathlib.Path) -> None:
    """Adds array_record to the formats in dataset_info.json."""
    info = json.loads(path.read_text(encoding="utf-8"))
    info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), _FORMAT]
    temporary = _temporary(path)
    # The same formatting as TFDS, so nothing else in the file changes.
    temporary.write_text(json.dumps(info, indent=2, sort_keys=True), encoding="utf-8")
    shutil.copymode(path, temporary)
    os.replace(temporary, path)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """Returns the name of a file while this process writes it."""
    return path.with_name(f"{_INCOMPLETE}{os.getpid()}-{path.name}")
