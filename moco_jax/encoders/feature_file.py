"""Files of features and the names of their images: .npz, or .parquet with pyarrow."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from moco_jax.data.sources.source import NO_LABEL, Source
from moco_jax.encoders import feature_reading
from moco_jax.terminal import command_line, signals
from moco_jax.text import printable


class FeatureRows(NamedTuple):
    """Features of some images of a source.

    Attributes:
      features: f32[n, F].
      indices: i64[n], the indices of the images in the source.
    """

    features: np.ndarray
    indices: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Features:
    """Features and their images.

    Attributes:
      features: f32[N, F].
      names: [N], of the images, as `text.printable` returns them.
      labels: i32[N], -1 for an image without a label; None without classes.
      class_names: by label; () without classes.
      about: `encoder`, the source of the encoder, and `output`, 'backbone' or 'head'.
    """

    features: np.ndarray
    names: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    about: dict[str, Any]

    def __repr__(self) -> str:
        count, length = self.features.shape
        classes = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return (
            f"<Features f32[{count}, {length}] of {count} images, {classes}; "
            f"{self.about['output']} of {self.about['encoder']}>"
        )

    def class_name(self, row: int) -> str:
        """Returns the name of an image's class, '' if it has none."""
        label = NO_LABEL if self.labels is None else self.labels[row]
        return "" if label == NO_LABEL else self.class_names[label]


def check_writable(path: pathlib.Path, overwrite: bool) -> None:
    """Checks before any work that `write` can write the file.

    Raises:
      ValueError: for an unknown ending, a file that exists, a folder that does not exist or can't
        be written, or a .parquet file without pyarrow.
    """
    _check_format(path)
    command_line.check_out(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; give another --out, or --overwrite")


def write(
    path: pathlib.Path, parts: Iterable[FeatureRows], source: Source, about: dict[str, Any]
) -> int:
    """Writes features one part at a time; returns the number of features.

    Only names and labels are held in memory. The file has another name until it is complete.
    `about` is saved as JSON. Names stand as `text.printable` returns them.

    Raises:
      OSError: if the file can't be written; the message names it.
      ValueError: if there are no features.
    """
    temporary = path.with_name(f"{path.name}.unfinished")
    added = {"format": feature_reading.FORMAT, "labelled": source.labels is not None}
    note = json.dumps(about | added)
    with signals.unfinished(temporary):
        try:
            count = _WRITERS[path.suffix](temporary, parts, source, note)
            if not count:
                raise ValueError(f"no image of {source.name} can be read")
            os.replace(temporary, path)
        except OSError as error:
            if error.filename or not error.errno:
                raise
            raise OSError(f"can't write {path}: {error}") from error
    return count


def collect(
    parts: Iterable[FeatureRows], source: Source, about: dict[str, Any]
) -> tuple[Features, np.ndarray]:
    """Returns all features in memory, and the indices i64[N] of their images; see `write`."""
    features, indices = (np.concatenate(x) for x in zip(*parts, strict=True))
    if not len(indices):
        raise ValueError(f"no image of {source.name} can be read")
    labels = None if source.labels is None else source.labels[indices]
    names = np.array(_names(source, indices))
    return Features(features, names, labels, _class_names(source), about), indices


def read(path: pathlib.Path) -> Features:
    """Returns the features of a file that `write` wrote.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is not a file of features, or damaged; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no features at {path}: no such file")
    _check_format(path)
    contents = feature_reading.read(path)
    labels = None if contents.labels is None else contents.labels.astype(np.int32)
    features = np.ascontiguousarray(contents.features, np.float32)
    return Features(features, contents.names, labels, contents.class_names, contents.about)


def _names(source: Source, indices: np.ndarray) -> list[str]:
    return [printable(source.names[int(i)]) for i in indices]


def _class_names(source: Source) -> tuple[str, ...]:
    return tuple(map(printable, source.class_names))


def _write_npz(path: pathlib.Path, parts: Iterable[FeatureRows], source: Source, note: str) -> int:
    """Writes arrays `features`, `names` and `about`; with classes also `labels`, `class_names`."""
    indices: list[np.ndarray] = []
    width, dtype = 0, np.dtype(np.float32)
    # An .npy file begins with the length of its array, which is known after the last part.
    with tempfile.TemporaryFile(dir=path.absolute().parent) as spool:
        for features, rows in parts:
            spool.write(np.ascontiguousarray(features, dtype).data)
            indices.append(rows)
            width = features.shape[1]
        rows = np.concatenate(indices)
        small = {"about": np.array(note), "names": np.array(_names(source, rows))}
        if source.labels is not None:
            small |= {"labels": source.labels[rows], "class_names": np.array(_class_names(source))}
        spool.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file:
                shape = {"descr": dtype.str, "fortran_order": False, "shape": (len(rows), width)}
                np.lib.format.write_array_header_1_0(file, shape)
                shutil.copyfileobj(spool, file)
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    return len(rows)


def _write_parquet(
    path: pathlib.Path, parts: Iterable[FeatureRows], source: Source, note: str
) -> int:
    """Writes columns `name`, `label` and `class` (null without a class), and `features`."""
    import pyarrow as pa
    import pyarrow.parquet

    class_names = _class_names(source)
    metadata = {"about": note, "class_names": json.dumps(class_names)}
    writer, count, sums = None, 0, (0, 0, 0)
    with contextlib.ExitStack() as stack:
        for features, rows in parts:
            names = _names(source, rows)
            labels = None if source.labels is None else source.labels[rows]
            sums = feature_reading.add_to_checksums(sums, features, names, labels)
            labels = [None] * len(rows) if labels is None else labels
            classes = [
                None if label in (None, NO_LABEL) else class_names[label] for label in labels
            ]
            values = pa.array(np.ravel(features), pa.float32())
            columns = {
                "name": pa.array(names, pa.string()),
                "label": pa.array(labels, pa.int32()),
                "class": pa.array(classes, pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(values, features.shape[1]),
            }
            table = pa.table(columns, metadata=metadata)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, table.schema, write_page_checksum=True)
                stack.enter_context(writer)
            writer.write_table(table)
            count += len(rows)
        if writer is not None:
            whole = feature_reading.checksum(sums, note, metadata["class_names"])
            writer.add_key_value_metadata({"checksum": whole})
    return count


def _check_format(path: pathlib.Path) -> None:
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"{path}: the ending {path.suffix!r} is unknown; allowed: {', '.join(_WRITERS)}"
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            ".parquet files need pyarrow: pip install 'moco-jax[parquet]'; or use an .npz file"
        )


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
