"""Reads files of features that may be damaged or made by a stranger.

Nothing in a file is executed, and nothing is allocated before its size is compared with the memory.
Every fault is a ValueError that names the file.
"""

import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from moco_jax.data.sources.source import NO_LABEL
from moco_jax.models.encoder import FEATURES
from moco_jax.text import line

FORMAT = "moco_jax.features"
_CHUNK_BYTES = 64 << 20
_CHUNK_ROWS = 65_536
_SHOWN = 3  # names in a message
_NAME_BYTES = 200  # that a name may take in memory
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError)  # whose words help
Checksums = tuple[int, int, int]  # of features, names and labels
_MAGIC = {b"PK\x03\x04": ".npz", b"PAR1": ".parquet"}


class Contents(NamedTuple):
    """What a file of features holds; see `feature_file.Features`."""

    features: np.ndarray
    names: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    about: dict[str, Any]


class _Fault(Exception):
    """What is wrong with a file, without its name."""


def read(path: pathlib.Path) -> Contents:
    """Returns the checked contents of an .npz or a .parquet.

    Raises:
      OSError: if the file can't be opened.
      ValueError: if it is not a file of features, or damaged.
    """
    with open(path, "rb") as file:
        kind = _MAGIC.get(file.read(4))
    try:
        if kind and kind != path.suffix:
            raise _Fault(f"it is a {kind} file; give it this ending")
        contents = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
        _check(contents)
        return contents
    except _Fault as fault:
        raise ValueError(f"can't read the features of {path}: {fault}") from fault.__cause__
    except MemoryError as error:
        raise ValueError(f"can't read the features of {path}: not enough memory") from error


def add_to_checksums(sums: Checksums, features, names: Iterable[str], labels) -> Checksums:
    """Returns the checksums of all rows so far, with some more rows; labels may be None."""
    texts = "".join(f"{name}\0" for name in names).encode()
    labels = np.zeros(0) if labels is None else labels
    return (
        zlib.crc32(np.ascontiguousarray(features, "<f4").data, sums[0]),
        zlib.crc32(texts, sums[1]),
        zlib.crc32(np.ascontiguousarray(labels, "<i4").data, sums[2]),
    )


def checksum(sums: Checksums, about: str, class_names: str) -> str:
    """Returns the checksum of a .parquet: of its rows and of its notes."""
    return str(zlib.crc32(json.dumps([*sums, about, class_names]).encode()))


def _read_npz(path: pathlib.Path) -> Contents:
    # Not np.load: it opens pickles too, and believes the sizes that a file claims.
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            wanted = {
                name: member
                for name in ("features", "names", "about", "labels", "class_names")
                for member in members
                if member.filename == f"{name}.npy"
            }
            if twice := [name for name in wanted if names.count(f"{name}.npy") > 1]:
                raise _Fault(f"it has the array {twice[0]!r} twice")
            _check_memory(sum(member.file_size for member in wanted.values()))
            arrays = {name: _array(archive, name, member) for name, member in wanted.items()}
    except _Fault:
        raise
    except Exception as error:  # zipfile raises many types for damaged files
        raise _Fault(_why(error)) from error
    if "about" not in arrays:
        raise _Fault(_not_features())
    about = _about(_strings(arrays["about"], "about", ())[0])
    for name in ("features", "names"):
        if name not in arrays:
            raise _Fault(f"it has no array {name!r}")
    texts = np.array(_strings(arrays["names"], "names", (-1,)))
    classes = arrays.get("class_names")
    classes = () if classes is None else tuple(_strings(classes, "class_names", (-1,)))
    return Contents(arrays["features"], texts, arrays.get("labels"), classes, about)


def _array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of an .npz."""
    file: Any  # a ZipExtFile, which can read into a buffer
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise _Fault(f"the array {name!r} has an unknown version {version}")
        shape, fortran, dtype = headers[version](file)
        if dtype.hasobject:
            raise _Fault(f"the array {name!r} holds Python objects; allowed: numbers and texts")
        if dtype.names or dtype.subdtype or any(side < 0 for side in shape):
            raise _Fault(f"the array {name!r} has the dtype {dtype} and the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise _Fault(
                f"the array {name!r} of shape {shape} must have {size} bytes; it has "
                f"{member.file_size - file.tell()}"
            )
        data = np.empty(size, np.uint8)
        filled = 0
        while filled < size:
            count = file.readinto(data.data[filled : filled + _CHUNK_BYTES])
            if not count:
                raise _Fault(f"the array {name!r} is cut off")
            filled += count
        file.read(1)  # compares the checksum
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def _strings(array: np.ndarray, name: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the texts of an array of the shape (), or (-1,) for any length."""
    if array.dtype.kind != "U" or array.ndim != len(shape):
        raise _Fault(f"{name} has the dtype {array.dtype} and the shape {array.shape}")
    try:
        return np.atleast_1d(array).tolist()
    except ValueError as error:
        raise _Fault(f"{name} has characters that do not exist") from error


def _read_parquet(path: pathlib.Path) -> Contents:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            notes = file.metadata.metadata or {}
            if b"about" not in notes:
                raise _Fault(_not_features())
            about = _about(notes[b"about"])
            kinds = {"name": pa.string(), "label": pa.int32(), "features": None}
            for name, kind in kinds.items():
                if schema.names.count(name) != 1:
                    raise _Fault(f"it has {schema.names.count(name)} columns {name!r}; allowed: 1")
                found = schema.field(name).type
                if kind is None and not pa.types.is_fixed_size_list(found):
                    raise _Fault(f"the column {name!r} is {found}; allowed: lists of one length")
                if kind is not None and found != kind:
                    raise _Fault(f"the column {name!r} is {found}; allowed: {kind}")
            width = schema.field("features").type.list_size
            _check_memory(rows * (4 * width + _NAME_BYTES))
            table = file.read(columns=list(kinds))
    except _Fault:
        raise
    except Exception as error:  # pyarrow raises many types for damaged files
        raise _Fault(_why(error)) from error
    values = table["features"].combine_chunks()
    if values.null_count or values.values.null_count or table["name"].null_count:
        raise _Fault("it has rows without a name or without features")
    features = values.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    names, labels = np.array(table["name"].to_pylist()), None
    if not table["label"].null_count:
        labels = table["label"].to_numpy()
    elif table["label"].null_count < len(table):
        raise _Fault("some of its images have a label and others have none")
    classes = _json(notes.get(b"class_names", b""), "class_names")
    if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
        raise _Fault("class_names must be a list of texts")
    contents = Contents(features, names, labels, tuple(classes), about)
    if (written := notes.get(b"checksum")) is not None:
        sums = add_to_checksums((0, 0, 0), features, contents.names, labels)
        found = checksum(sums, *(notes[key].decode() for key in (b"about", b"class_names")))
        if written.decode(errors="replace") != found:
            raise _Fault("its contents do not have the checksum that was written")
    return contents


def _about(note: str | bytes) -> dict[str, Any]:
    """Returns what a file says about its features."""
    about = _json(note, "about")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _Fault(_not_features())
    if not isinstance(about.get("encoder"), str) or about.get("output") not in list(FEATURES):
        raise _Fault(
            f"its 'about' must name the encoder and the output ({' or '.join(FEATURES)}); it has "
            f"encoder={about.get('encoder')!r:.80} and output={about.get('output')!r:.80}"
        )
    return about


def _json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Fault(f"{name!r} is not JSON") from error


def _check(contents: Contents) -> None:
    """Raises a `_Fault` unless the arrays fit each other."""
    features, names, labels, classes, about = contents
    if features.dtype.newbyteorder("=") != np.float32 or features.ndim != 2 or 0 in features.shape:
        raise _Fault(
            f"features must be float32 [N, F], got {features.dtype} {list(features.shape)}"
        )
    if len(names) != len(features):
        raise _Fault(f"it has {len(features)} features, but {len(names)} names")
    if (labels is None) != (not classes):
        raise _Fault("it must have both labels and class_names, or neither")
    # Files of versions before 0.2.0 do not say whether they have labels.
    if about.get("labelled", labels is not None) != (labels is not None):
        raise _Fault("its labels are missing")
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != (len(features),):
            raise _Fault(
                f"labels must be {len(features)} integers, got {labels.dtype} {list(labels.shape)}"
            )
        if labels.min() < NO_LABEL or labels.max() >= len(classes):
            raise _Fault(
                f"labels must be 0 to {len(classes) - 1}, one of the {len(classes)} class names; "
                f"got {labels.min()} to {labels.max()}; -1 is no class"
            )
    if len(bad := not_finite(features)):
        shown = ", ".join(line(str(names[row])) for row in bad[:_SHOWN])
        raise _Fault(f"{len(bad)} of its features are NaN or infinite, such as those of {shown}")


def not_finite(features: np.ndarray) -> np.ndarray:
    """Returns the rows of f32[N, F] with values that are not finite."""
    parts = (features[i : i + _CHUNK_ROWS] for i in range(0, len(features), _CHUNK_ROWS))
    return np.flatnonzero(
        np.concatenate([np.zeros(0, bool), *(~np.isfinite(part).all(axis=1) for part in parts)])
    )


def _check_memory(needed: int) -> None:
    """Raises a `_Fault` if the memory does not suffice for this many bytes."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return
    if needed > free:
        raise _Fault(f"it needs {needed >> 20} MB of memory, {free >> 20} MB are available")


def _why(error: Exception) -> str:
    """Returns the reason of a library; not that of NumPy, which advises to load pickles."""
    if isinstance(error, _DAMAGE) or type(error).__module__.startswith("pyarrow"):
        return line(str(error))[:300] or type(error).__name__
    return f"the file is damaged ({type(error).__name__})"


def _not_features() -> str:
    return "it is not a file of features; allowed: what `python -m moco_jax.embed --out` wrote"
