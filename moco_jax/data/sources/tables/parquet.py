"""Reads the images of Parquet files by row.

An image of a column that is neither compressed nor encoded is read by offset. The offsets of a row
group are found when its first image is read. Other row groups are decoded as a whole by pyarrow; a
cache of bounded size holds the last ones.
"""

import collections
import dataclasses
import shlex
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.buckets import objects
from moco_jax.data.sources.archives.memory import available_bytes
from moco_jax.data.sources.storage.files import File, open_file, stream
from moco_jax.data.sources.tables import labels
from moco_jax.data.sources.tables.columns import Columns
from moco_jax.data.sources.tables.damage import damage
from moco_jax.data.sources.tables.extents import by_path, no_image, read_at
from moco_jax.data.sources.tables.pages import NotPlain, value_extents
from moco_jax.data.sources.tables.rows import Rows

_MAX_CACHE = 1 << 30  # bytes
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}  # the latter two encode levels only
_LOCKS = 64


@dataclasses.dataclass(frozen=True)
class Group:
    """A row group: where the bytes of its images lie."""

    file: File
    number: int  # in its file
    rows: int
    start: int  # of the column, in bytes
    end: int
    decoded: int  # bytes of the column when it is decoded
    direct: bool  # whether its pages are neither compressed nor encoded
    nullable: bool


def read_schema(path: str) -> Any:
    """Returns the pyarrow schema of a file.

    Raises:
      ValueError: if it is damaged or no Parquet file.
    """
    import pyarrow.parquet

    with damage(path), stream(open_file(path)) as file:
        return pyarrow.parquet.read_schema(file)


def open_rows(
    paths: Sequence[str], columns: Columns, name: str, where: str
) -> tuple[Rows, list[str]]:
    """Returns the rows of all files in their order, and lines about them.

    Args:
      paths: of the files.
      columns: that all files have.
      name: of a row without a path, which its number follows.
      where: for messages.

    Raises:
      ValueError: if a file is damaged, or its labels have no names.
    """
    import pyarrow.parquet

    groups: list[Group] = []
    tables = []
    small = [column for column in (columns.label, columns.path_leaf) if column]
    for path in paths:
        with damage(path):
            place = by_path(path)
            with stream(place) as opened, pyarrow.parquet.ParquetFile(opened) as file:
                groups += _groups(place, file.metadata, columns)
                count = file.metadata.num_rows
                table = file.read(columns=small, use_threads=False) if small else None
        if table is not None:
            if len(table) != count:
                raise ValueError(f"{path} is damaged: it has {len(table)} of {count} labels")
            tables.append(table)
    column = lambda leaf: _column(tables, leaf)  # noqa: E731
    reader = _Reader(groups, columns)
    total = int(reader.first[-1])
    found, class_names = np.full(total, -1, np.int32), ()
    if columns.label:
        found, class_names = labels.of_column(column(columns.label), columns.class_names, where)
    texts = labels.paths_of(column(columns.path_leaf)) if columns.path_leaf else None
    names = labels.row_names(texts, found, class_names, name)
    rows = Rows(reader.read, names, texts, found, class_names, reader.decoded_together())
    return rows, reader.warnings(where)


def _column(tables: Sequence[Any], leaf: str) -> Any:
    """Returns a column of all tables as a pyarrow ChunkedArray; 'image.path' may be a leaf."""
    import pyarrow as pa

    parts = [(table if leaf in table.column_names else table.flatten())[leaf] for table in tables]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)


def _groups(file: File, metadata: Any, columns: Columns) -> list[Group]:
    """Returns the row groups of a file, after a check of what its metadata claim."""
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    index = next((i for i, leaf in enumerate(leaves) if leaf.path == columns.bytes_leaf), None)
    size = file.size
    if index is None or leaves[index].max_repetition_level:
        raise ValueError(f"it has no column {columns.bytes_leaf}")
    nullable = leaves[index].max_definition_level > 0
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunk = group.column(index)
        if not 0 <= group.num_rows <= size or chunk.num_values != group.num_rows:
            raise ValueError(f"row group {number} claims {group.num_rows} rows in {size} bytes")
        start = chunk.data_page_offset
        plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= _PLAIN
        decoded, end = chunk.total_uncompressed_size, start + chunk.total_compressed_size
        direct = plain and not chunk.has_dictionary_page and 0 <= start <= end <= size
        groups.append(Group(file, number, group.num_rows, start, end, decoded, direct, nullable))
    if sum(group.rows for group in groups) != metadata.num_rows or metadata.num_rows > size:
        raise ValueError(f"its metadata claim {metadata.num_rows} rows in {size} bytes")
    return groups


class _Reader:
    """Images of row groups by row; safe to use from threads.

    Attributes:
      first: the first row of each group, and the number of rows.
    """

    def __init__(self, groups: Sequence[Group], columns: Columns):
        self._groups, self._columns = groups, columns
        self.first = np.cumsum([0, *(group.rows for group in groups)])
        self._offsets = np.zeros(self.first[-1], np.int64)
        self._sizes = np.zeros(self.first[-1], np.uint32)
        # Of each group: None before its first image is read, then whether offsets are known.
        self._known: list[bool | None] = [None if group.direct else False for group in groups]
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._most = min(_MAX_CACHE, available_bytes() // 4)
        self._cache = _Cache(self._most)

    def read(self, row: int) -> bytes:
        """Returns the bytes of an image.

        Raises:
          OSError: if they can't be read, or there are none.
        """
        number = int(np.searchsorted(self.first, row, "right")) - 1
        known = self._known[number]
        if known is None:
            known = self._find(number)
        if known:
            size = int(self._sizes[row])
            return read_at(self._groups[number].file, int(self._offsets[row]), size)
        value = self._decoded(number)[row - int(self.first[number])].as_py()
        if value is None:
            raise no_image(self._groups[number].file.path, row)
        return value

    def decoded_together(self) -> np.ndarray | None:
        """Returns the row group of each row, int32 [N]; None if all images are read by offset."""
        if all(group.direct for group in self._groups):
            return None
        return np.repeat(np.arange(len(self._groups), dtype=np.int32), np.diff(self.first))

    def warnings(self, where: str) -> list[str]:
        """Returns a warning if compressed row groups do not fit into the cache.

        Raises:
          ValueError: if one of them alone does not.
        """
        for group in self._groups:
            if not group.direct and group.decoded > self._most:
                raise ValueError(
                    f"row group {group.number} of {group.file.path} has "
                    f"{group.decoded >> 20:,} MB of images that are compressed or encoded; "
                    f"allowed: {self._most >> 20:,} MB (1 GiB, or a quarter of the free memory), "
                    "as it is decoded whole. Write the file again with smaller row groups, or by "
                    "pyarrow with compression='none' and use_dictionary=False, which has no limit"
                )
        decoded = sum(group.decoded for group in self._groups if not group.direct)
        if decoded <= self._most:
            return []
        return [
            f"warning: {where}: {decoded / 2**30:.3g} GiB of images are compressed or encoded, so "
            "that reading one image decodes its row group; this is slow. Convert them once: "
            f"python -m moco_jax.data.prepare --from={shlex.quote(where)} --to=shards --out=FOLDER"
        ]

    def _find(self, number: int) -> bool:
        """Finds the offsets of a group; returns whether they are known."""
        group, first = self._groups[number], int(self.first[number])
        rows = slice(first, first + group.rows)
        with self._locks[number % _LOCKS]:
            if (known := self._known[number]) is not None:
                return known
            try:
                with stream(group.file) as file:
                    found = value_extents(file, group.start, group.end, group.rows, group.nullable)
            except NotPlain:  # nulls, or damage that pyarrow explains
                self._known[number] = False
                return False
            self._offsets[rows], self._sizes[rows] = found
            self._known[number] = True
            return True

    def _decoded(self, number: int) -> Any:
        """Returns the images of a group as a pyarrow ChunkedArray."""
        with self._locks[number % _LOCKS]:  # others wait: to decode twice would take longer
            if (found := self._cache.get(number)) is None:
                found = self._decode(self._groups[number])
                self._cache.add(number, found, found.nbytes)
        return found

    def _decode(self, group: Group) -> Any:
        import pyarrow.parquet

        leaf, path = self._columns.bytes_leaf, group.file.path
        try:
            with stream(group.file) as opened, pyarrow.parquet.ParquetFile(opened) as file:
                table = file.read_row_group(group.number, columns=[leaf], use_threads=False)
        except objects.BucketError:
            raise
        except Exception as error:  # pyarrow raises many types for damaged files
            raise OSError(
                f"can't read {path}: row group {group.number} is damaged: {error}"
            ) from error
        found = _column([table], leaf)
        if len(found) != group.rows:
            raise OSError(f"can't read {path}: row group {group.number} is damaged")
        return found


class _Cache:
    """The last decoded row groups, of at most `most` bytes."""

    def __init__(self, most: int):
        self._most, self._bytes, self._lock = most, 0, threading.Lock()
        self._held: collections.OrderedDict[int, tuple[Any, int]] = collections.OrderedDict()

    def get(self, number: int) -> Any:
        with self._lock:
            if number not in self._held:
                return None
            self._held.move_to_end(number)
            return self._held[number][0]

    def add(self, number: int, value: Any, size: int) -> None:
        with self._lock:
            self._held[number] = value, size
            self._bytes += size
            while self._bytes > self._most and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1][1]
