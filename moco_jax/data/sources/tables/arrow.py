"""Reads the images of Arrow files by offset, as `datasets` saves them to disk.

The offsets are those of the columns in memory-mapped files, so no image is read before it is asked
for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moco_jax.data.sources.tables import labels
from moco_jax.data.sources.tables.columns import Columns
from moco_jax.data.sources.tables.damage import damage
from moco_jax.data.sources.tables.extents import by_path, no_image, read_at
from moco_jax.data.sources.tables.rows import Rows

_MAGIC = b"ARROW1"  # of a file; a stream has none
_NULL = np.int64(-1)  # in place of the size of an image


def read_schema(path: str) -> Any:
    """Returns the pyarrow schema of a file.

    Raises:
      ValueError: if it is damaged or no Arrow file.
    """
    with damage(path):
        return _opened(path)[0].schema


def open_rows(
    paths: Sequence[str], columns: Columns, name: str, where: str
) -> tuple[Rows, list[str]]:
    """Returns the rows of all files in their order; `parquet.open_rows` documents the arguments."""
    import pyarrow as pa

    first, offsets, sizes = [0], [], []
    parts: dict[str, list[Any]] = {leaf: [] for leaf in (columns.label, columns.path_leaf) if leaf}
    for path in paths:
        with damage(path):
            reader, whole = _opened(path)
            for batch in _batches(reader):
                batch.validate()  # pyarrow ends the process if a length is impossible
                leaf = _leaf(batch, columns.bytes_leaf)
                found = _extents(leaf, whole)
                offsets.append(found[0])
                sizes.append(found[1])
                for column, arrays in parts.items():
                    array = _leaf(batch, column)
                    array.validate(full=True)  # the file is not trusted
                    arrays.append(pa.concat_arrays([array, array.slice(0, 0)]))  # a copy
        first.append(sum(map(len, sizes)))
    offset, size = (np.concatenate([np.zeros(0, np.int64), *x]) for x in (offsets, sizes))
    found, class_names = np.full(len(size), -1, np.int32), ()
    if columns.label and len(size):
        column = pa.chunked_array(parts[columns.label])
        found, class_names = labels.of_column(column, columns.class_names, where)
    texts = None
    if columns.path_leaf and len(size):
        texts = labels.paths_of(pa.chunked_array(parts[columns.path_leaf]))
    starts, files = np.array(first), [by_path(path) for path in paths]

    def read(row: int) -> bytes:
        file = files[int(np.searchsorted(starts, row, "right")) - 1]
        if size[row] == _NULL:
            raise no_image(file.path, row)
        return read_at(file, int(offset[row]), int(size[row]))

    return Rows(
        read, labels.row_names(texts, found, class_names, name), texts, found, class_names
    ), []


def _opened(path: str) -> tuple[Any, Any]:
    """Returns a pyarrow reader of the batches of a file, and the whole file as a mapped buffer."""
    import pyarrow as pa

    with pa.memory_map(path) as mapped:
        whole = mapped.read_buffer()
    is_file = whole.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(whole), whole


def _batches(reader: Any) -> Iterator[Any]:
    """Yields the record batches of a file or a stream."""
    if hasattr(reader, "num_record_batches"):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _leaf(batch: Any, leaf: str) -> Any:
    """Returns a column of a batch; 'image.bytes' is one of a structure."""
    if leaf in batch.schema.names:
        return batch.column(leaf)
    name, _, inner = leaf.rpartition(".")
    column = batch.column(name)
    return column.flatten()[column.type.get_field_index(inner)]


def _extents(column: Any, whole: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets in the file and the sizes of binary values, int64 [N] each."""
    import pyarrow as pa

    count = len(column)
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, ends, data = column.buffers()
    dtype = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    needed = (column.offset + count + 1) * dtype().itemsize
    if ends is None or ends.size < needed:
        raise ValueError("a column has fewer offsets than rows")
    ends = np.frombuffer(ends, dtype, count + 1, column.offset * dtype().itemsize).astype(np.int64)
    sizes = np.diff(ends)
    begin, end = (data.address - whole.address, data.size) if data is not None else (0, 0)
    if begin < 0 or begin + end > len(whole):
        raise ValueError("its columns are compressed; save it again without compression")
    if sizes.min() < 0 or ends[0] < 0 or ends[-1] > end:
        raise ValueError("the offsets of its images lie outside of their column")
    if column.null_count:
        sizes[column.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return begin + ends[:-1], sizes
