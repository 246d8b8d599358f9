"""Finds where the values of a Parquet column lie in the file.

The pages of a column that is neither compressed nor encoded (`datasets` writes images so) have each
value as its length (uint32) and its bytes. So one image can be read without the others of its row
group. Format: https://parquet.apache.org/docs/file-format/data-pages/ and the compact protocol of
Thrift.
"""

import struct
from typing import BinaryIO

import numpy as np

_MAX_HEADER = 1 << 20  # bytes of the header of a page
_WINDOW = 1 << 12
_MAX_NESTING = 8
_DATA, _INDEX, _DATA_V2 = 0, 1, 3  # types of pages
_PLAIN = 0
_Fields = dict[int, "int | _Fields | None"]


class NotPlain(Exception):
    """Raised if the values of a column can't be addressed; pyarrow may read it."""


def value_extents(
    file: BinaryIO, start: int, end: int, count: int, nullable: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets int64 [count] and the sizes int64 [count] of the values of a column.

    Args:
      file: the Parquet file.
      start, end: where the pages of one row group lie.
      count: number of values.
      nullable: whether the pages have levels that mark nulls.

    Raises:
      NotPlain: if there are nulls, another encoding, or damage.
      OSError: if the disk can't be read.
    """
    offsets, sizes = np.empty(count, np.int64), np.empty(count, np.int64)
    done, at = 0, start
    while done < count:
        header, length = _header(file, at, end)
        size = _whole(header, 3)
        if size != _whole(header, 2) or at + length + size > end:
            raise NotPlain("a page is compressed or reaches beyond its column")
        values, following = at + length, at + length + size
        if header.get(1) in (_DATA, _DATA_V2):
            values, inside = _values(file, header, values, nullable)
            if inside > count - done:
                raise NotPlain("a page has more values than its column")
            _walk(file, values, following, slice(done, done + inside), offsets, sizes)
            done += inside
        elif header.get(1) != _INDEX:
            raise NotPlain("the column has a dictionary")
        at = following
    return offsets, sizes


def _values(file: BinaryIO, header: _Fields, at: int, nullable: bool) -> tuple[int, int]:
    """Returns where the values of a data page begin, and their number."""
    second = header[1] == _DATA_V2
    page = header.get(8 if second else 5)
    if not isinstance(page, dict) or page.get(4 if second else 2) != _PLAIN:
        raise NotPlain("a page has another encoding")
    if second:
        at += _whole(page, 5) + _whole(page, 6)
    elif nullable:
        at += 4 + struct.unpack("<I", _at(file, at, 4))[0]
    return at, _whole(page, 1)


def _walk(
    file: BinaryIO, at: int, end: int, rows: slice, offsets: np.ndarray, sizes: np.ndarray
) -> None:
    """Writes the extents of the values of a page, which must fill it."""
    for row in range(rows.start, rows.stop):
        if at + 4 > end:
            raise NotPlain("a page has nulls")
        [size] = struct.unpack("<I", _at(file, at, 4))
        offsets[row], sizes[row] = at + 4, size
        at += 4 + size
    if at != end:
        raise NotPlain("the values of a page do not fill it")


def _header(file: BinaryIO, at: int, end: int) -> tuple[_Fields, int]:
    """Returns the fields of the header of a page, and its length in bytes."""
    window = _WINDOW
    while True:
        data = _at(file, at, min(window, end - at), exact=False)
        try:
            return _struct(data, 0, _MAX_NESTING)
        except IndexError as error:
            if window >= min(_MAX_HEADER, end - at):
                raise NotPlain("the header of a page is damaged") from error
            window *= 16


def _at(file: BinaryIO, offset: int, size: int, exact: bool = True) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if exact and len(data) < size:
        raise NotPlain("the file ends within a page")
    return data


def _whole(fields: _Fields, number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise NotPlain("the header of a page is damaged")
    return value


def _struct(data: bytes, at: int, levels: int) -> tuple[_Fields, int]:
    """Returns the whole numbers and structures of a Thrift structure, and where it ends."""
    fields: _Fields = {}
    number = 0
    if not levels:
        raise NotPlain("the header of a page is nested too deep")
    while byte := data[at]:
        at += 1
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, byte & 15, levels)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, levels: int) -> tuple["int | _Fields | None", int]:
    """Returns a field if it is a number or a structure, and where it ends."""
    if kind in (1, 2):  # true, false
        return 2 - kind, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:  # bytes; statistics may have some
        size, at = _varint(data, at)
        data[at + size - 1]  # raises an IndexError if the window is too small
        return None, at + size
    if kind == 12:
        return _struct(data, at, levels - 1)
    raise NotPlain("the header of a page has an unknown field")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 128 and shift < 63:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
