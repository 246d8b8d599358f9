"""Makes a TFDS data set readable by index: `python -m moco_jax.data.prepare --name=imagenet2012`.

A data set that already lies in TFRecords is converted in place, without TensorFlow: array_record
shards are added beside them and dataset_info.json lists both, as TFDS's own convert_format does it
(with TensorFlow and Apache Beam). One that is not there at all is downloaded and prepared by TFDS.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from absl import app, flags, logging
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from grain.experimental import TFRecordIterDataset

from moco_jax.data.sources import tfds_source

_NAME = flags.DEFINE_string("name", None, "TFDS's name, as cifar10 or voc/2012:5.0.0.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data directory; default TFDS's own.")
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", "", "Files downloaded by hand; default <data_dir>/downloads/manual."
)

_FORMAT = "array_record"
_INCOMPLETE = ".incomplete-"
_REPORT_SECONDS = 5
_TF_MODULES = ("tensorflow", "importlib_resources")  # TFDS declares neither
_INSTALL = (
    "TFDS needs TensorFlow to prepare this data set (not to read it): run\n"
    "  pip install 'moco-jax[tf]'"
)


class _Shard(NamedTuple):
    """A file of TFRecords, the array_record to make of it, and the number of its records."""

    source: pathlib.Path
    target: pathlib.Path
    length: int


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> None:
    """Makes a data set readable by index, and prints what is done and where it lies.

    Args:
      name: TFDS's, as 'cifar10' or 'imagenet_resized/64x64:0.1.0'.
      data_dir: where it lies or will lie; '' for TFDS's own place (~/tensorflow_datasets).
      manual_dir: the files of a data set that must be downloaded by hand; '' for TFDS's own place.

    Raises:
      ValueError: an unknown name, damaged TFRecords, or something to install or to download first.
      OSError: no space, or a folder that can't be read or written.
    """
    data_dir = os.path.expanduser(data_dir)
    builder = tfds_source.open_builder(name, data_dir)
    formats = tfds_source.formats(builder)
    if not builder.info.splits:
        _generate(builder, name, manual_dir)
    elif formats & tfds_source.RANDOM_ACCESS:
        print("nothing to do")
    elif "tfrecord" in formats:
        _convert(builder)
    else:
        raise ValueError(
            f"{builder.data_path} is prepared as {', '.join(sorted(formats))}; only tfrecord can "
            "be converted. Prepare the data set anew with another --data_dir"
        )
    _report(tfds_source.open_builder(name, data_dir), name)


def _report(builder, name: str) -> None:
    """Prints where the data set lies, and its splits."""
    formats = tfds_source.formats(builder) & tfds_source.RANDOM_ACCESS
    if not (builder.info.splits and formats):
        raise ValueError(
            f"TFDS prepared nothing, since {builder.data_path} exists; if what is in it is of no "
            "use, delete it and run this again"
        )
    print(f"{name} can be read by index ({', '.join(sorted(formats))}) in {builder.data_path}")
    for split in builder.info.splits.values():
        print(f"  {split.name}: {split.num_examples} records, {split.num_bytes}")


def _generate(builder, name: str, manual_dir: str) -> None:
    """Has TFDS download and prepare a data set, once all that it needs is there."""
    import tensorflow_datasets as tfds

    default = os.path.join(builder.data_dir_root, "downloads", "manual")
    manual = pathlib.Path(manual_dir or default).expanduser()
    problems = []
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
        instructions = textwrap.dedent(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).strip()
        problems.append(
            f"some files must be downloaded by hand, into {manual} (or another --manual_dir), and "
            f"none are there. TFDS says:\n{textwrap.indent(instructions, '  ')}"
        )
    # TFDS's own builders import them at some point, often after gigabytes were downloaded.
    own = type(builder).__module__.startswith("tensorflow_datasets.")
    if own and not all(map(importlib.util.find_spec, _TF_MODULES)):
        problems.append(_INSTALL)
    if problems:
        raise ValueError("\n".join([f"{tfds_source.not_prepared(builder, name)}.", *problems]))
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    try:
        builder.download_and_prepare(file_format=_FORMAT, download_config=config)
    except Exception as error:  # whatever a builder may raise
        if _lacks_tensorflow(error):
            raise ValueError(_INSTALL) from error
        kind = type(error).__name__
        raise ValueError(f"TFDS could not prepare {name!r}: {kind}: {error}") from error


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """Returns whether an error stems from a missing TensorFlow: TFDS wraps it in its own."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in _TF_MODULES:
            return True
        error = error.__cause__ or error.__context__
    return False


def _convert(builder) -> None:
    """Adds array_record shards to a data set in TFRecords, going on where it was interrupted."""
    shards = _shards(builder)
    info = pathlib.Path(builder.data_dir, "dataset_info.json")
    for folder in {info.parent, *(shard.target.parent for shard in shards)}:
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                f"{folder} holds the data set as tfrecord, but can't be written to, and the "
                "converted shards belong there; run this as its owner, or copy it elsewhere"
            )
        for stale in folder.glob(f"{_INCOMPLETE}*"):
            stale.unlink()
    left = [shard for shard in shards if not _is_whole(shard)]
    _check_sources(left)
    _check_space(left)
    print(f"converting {len(left)} of {len(shards)} shards in {info.parent}", flush=True)
    reported = time.monotonic()
    for done, shard in enumerate(left, start=1):
        _write(shard)
        if done == len(left) or time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{done} of {len(left)} shards", flush=True)
    _list_format(info)


def _shards(builder) -> list[_Shard]:
    """Returns the shards of all splits."""
    shards = []
    for split in builder.info.splits.values():
        template, count = split.filename_template, split.num_shards
        files = [
            [
                pathlib.Path(path)
                for path in template.replace(filetype_suffix=suffix).sharded_filepaths(count)
            ]
            for suffix in ("tfrecord", _FORMAT)
        ]
        if not count or files[0] == files[1]:
            raise ValueError(
                f"can't convert the split {split.name!r} in {builder.data_path}: dataset_info.json "
                + ("names files that do not tell their format" if count else "tells no shards")
            )
        shards += map(_Shard, *files, split.shard_lengths)
    return shards


def _is_whole(shard: _Shard) -> bool:
    """Returns whether a shard is converted already."""
    if not shard.target.exists():
        return False
    try:
        reader = ArrayRecordReader(str(shard.target))
        whole = reader.ok() and reader.num_records() == shard.length
        reader.close()
    except RuntimeError:  # a cut file
        return False
    return whole


def _check_sources(shards: list[_Shard]) -> None:
    """Raises a FileNotFoundError that tells the missing TFRecords."""
    missing = [shard.source for shard in shards if not shard.source.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards of TFRecords are missing, such as {missing[0]}"
        )


def _check_space(shards: list[_Shard]) -> None:
    """Raises an OSError with numbers where the converted shards do not fit."""
    if not shards:
        return
    # array_record takes up to 60 bytes a record and 128 KiB a file more than TFRecords do.
    needed = sum(1.01 * s.source.stat().st_size + 64 * s.length + 2**18 for s in shards)
    folder = shards[0].target.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"converting takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
            f"{folder}"
        )


def _write(shard: _Shard) -> None:
    """Writes a shard as array_record; under its own name once it is whole."""
    temporary = _temporary(shard.target)
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # as TFDS: one record a read
        for record in _records(shard):
            writer.write(record)
        writer.close()
        os.replace(temporary, shard.target)
    except RuntimeError as error:  # the writer's, such as a full disk
        raise OSError(f"can't write {shard.target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _records(shard: _Shard) -> Iterator[bytes]:
    """Yields the records of a TFRecord file; a ValueError unless they are as many as they should.

    The checksums are not compared: a record with flipped bits is copied with them.
    """
    count = 0
    try:
        for record in TFRecordIterDataset(str(shard.source)):
            yield record
            count += 1
    except (ValueError, OverflowError, MemoryError) as error:  # a cut file, a nonsense length
        problem = f"it can't be read beyond record {count} of {shard.length}"
        raise ValueError(f"{shard.source} is damaged: {problem}") from error
    if count != shard.length:
        problem = f"it holds {count} records, and {shard.length} by dataset_info.json"
        raise ValueError(f"{shard.source} is damaged: {problem}")


def _list_format(path: pathlib.Path) -> None:
    """Lists array_record in dataset_info.json as another format of the data set."""
    info = json.loads(path.read_text(encoding="utf-8"))
    info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), _FORMAT]
    temporary = _temporary(path)
    # The layout of TFDS, so that nothing else of the file changes.
    temporary.write_text(json.dumps(info, indent=2, sort_keys=True), encoding="utf-8")
    shutil.copymode(path, temporary)
    os.replace(temporary, path)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """Returns a file's name while it is written; each process has its own."""
    return path.with_name(f"{_INCOMPLETE}{os.getpid()}-{path.name}")


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if not _NAME.value:
        _fail("name the data set, such as --name=cifar10")
    try:
        prepare(_NAME.value, _DATA_DIR.value, _MANUAL_DIR.value)
    except (OSError, ValueError) as error:
        if logging.level_debug():
            raise
        _fail(f"{error}\n(--verbosity=1 shows where)")
    except KeyboardInterrupt:
        print("\nstopped; start the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, an error of theirs in one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _fail(str(error))
    if len(rest) > 1:
        _fail(f"unexpected arguments: {' '.join(rest[1:])}")
    return rest


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
