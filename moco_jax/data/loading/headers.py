"""Looks at the header of an image file before Pillow does.

Pillow reads structures of any length, and some plugins allocate memory before the size is known.
"""

import re
import struct
from collections.abc import Callable

from moco_jax.data.loading.decoding import BadImage

_MAX_SIZE = 16 << 20  # bytes before the pixels of a JPEG: 255 segments of 64 kB, as ICC may have
_MAX_PARTS = 200_000  # chunks, blocks or tags: a second in Pillow, and 1.6 GB of PNG in 8 kB chunks
_MAX_PPM_HEADER = 1 << 16  # bytes
_PPM_COMMENT = re.compile(rb"#[^\r\n]*")
_FRAME, _EXTENSION = 0x2C, 0x21  # of a GIF


def check_header(data: bytes) -> tuple[int, int]:
    """Returns (width, height) of a WebP or GIF, whose plugins need it first; (0, 0) for others.

    Raises:
      BadImage: if Pillow would take long to read the header.
    """
    for start, check in _CHECKS.items():
        if data.startswith(start):
            try:
                return check(data) or (0, 0)
            except (struct.error, IndexError):  # truncated; Pillow says so
                break
    return 0, 0


def _check_parts(count: int, what: str) -> None:
    if count > _MAX_PARTS:
        raise BadImage(f"its header has more than {_MAX_PARTS} {what}; it would take long to read")


def _jpeg(data: bytes) -> None:
    if len(data) > _MAX_SIZE and data.find(b"\xff\xda", 0, _MAX_SIZE) < 0:
        raise BadImage(f"a JPEG without pixels in its first {_MAX_SIZE} bytes")


def _png(data: bytes) -> None:
    at, count = 8, 0
    while at + 8 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4])
        count += 1
        _check_parts(count, "chunks")


def _big_tiff(data: bytes) -> None:
    order = "<" if data.startswith(b"II") else ">"
    [start] = struct.unpack_from(f"{order}Q", data, 8)
    if start + 8 <= len(data):
        _check_parts(struct.unpack_from(f"{order}Q", data, start)[0], "tags")


def _ppm(data: bytes) -> None:
    head = data[2:_MAX_PPM_HEADER]
    numbers = 2 if data[:2] in (b"P1", b"P4") else 3
    if len(data) > _MAX_PPM_HEADER and len(_PPM_COMMENT.sub(b" ", head).split()) < numbers:
        raise BadImage(f"a PPM whose header has more than {_MAX_PPM_HEADER} bytes")


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L":
        [bits] = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _gif(data: bytes) -> tuple[int, int]:
    """Returns the size of the screen, enlarged to the first frame."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    count = 0
    while data[at] != _FRAME:
        if data[at] == _EXTENSION:  # blocks that start with their length
            at += 2
            while data[at]:
                at += 1 + data[at]
                count += 1
                _check_parts(count, "blocks")
        at += 1
        count += 1
        _check_parts(count, "blocks")
    left, top, w, h = struct.unpack_from("<4H", data, at + 1)
    return max(width, left + w), max(height, top + h)


_CHECKS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG": _png,
    b"II+\0": _big_tiff,
    b"MM\0+": _big_tiff,
    b"P": _ppm,
    b"RIFF": _webp,
    b"GIF8": _gif,
}
