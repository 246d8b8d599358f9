"""Reads the EXIF orientation of a JPEG and turns pixels upright."""

import re
import struct

import numpy as np

ORIENTATION = 0x0112  # the EXIF tag
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_SHORT, _LONG = 3, 4  # types of an EXIF value


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Returns pixels [h, w, 3] turned as `PIL.ImageOps.exif_transpose` does.

    An orientation other than 2 to 8 changes nothing.
    """
    if not 2 <= orientation <= 8:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def in_app1(content: bytes) -> int:
    """Returns the orientation in an APP1 segment (EXIF or XMP), or 0 without a valid one."""
    if content.startswith(_EXIF):
        return _in_exif(content[len(_EXIF) :])
    if content.startswith(_XMP) and (match := _XMP_ORIENTATION.search(content)):
        return int(match[1])
    return 0


def _in_exif(tiff: bytes) -> int:
    """Returns the orientation in the first directory of EXIF data, or 0 without a valid one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 0
    [start] = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 0
    [count] = struct.unpack_from(f"{order}H", tiff, start)
    # The segment's length (64 kB) bounds the entries.
    end = min(start + 2 + 12 * count, len(tiff) - 11)
    for at in range(start + 2, end, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, at)
        if tag == ORIENTATION and values == 1 and kind in (_SHORT, _LONG):
            return struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, at + 8)[0]
    return 0
