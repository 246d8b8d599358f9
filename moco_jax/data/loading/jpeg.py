"""Decodes ordinary JPEGs with libjpeg-turbo, faster than Pillow does."""

import struct

import numpy as np
import simplejpeg

from moco_jax.data.loading.decoding import BadImage, Decoding, check_pixels, check_scans
from moco_jax.data.loading.orientation import in_app1, upright

MAGIC = b"\xff\xd8\xff"
SCAN = b"\xff\xda"

_SOS, _APP1 = 0xDA, 0xE1
# DHT, DQT, DRI, DAC, the application segments and the comment.
_SKIPPED = frozenset((0xC4, 0xDB, 0xDD, 0xCC, *range(0xE0, 0xF0), 0xFE)) - {_APP1}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODED = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, extended, progressive; arithmetic coding
_PROGRESSIVE = (0xC2, 0xCA)
_MOST_SEGMENTS = 10_000
_segment = struct.Struct(">BBH").unpack_from  # 0xff, marker, length
_frame = struct.Struct(">BHHB").unpack_from  # bits, height, width, components


# Marker of the frame, bits a channel, height, width, components; the orientation (0 without one);
# whether the first scan has the whole image; the offset of that scan. A named tuple costs 2 % of
# the time of a small image.
Header = tuple[int, int, int, int, int, int, bool, int]


def read_header(data: bytes) -> Header | None:
    """Returns the header of a JPEG; None unless its segments follow each other without a fault.

    Raises:
      BadImage: for more segments than a header may have.
    """
    frame, orientation, at = None, 0, 2
    try:
        for _ in range(_MOST_SEGMENTS):
            mark, marker, length = _segment(data, at)
            if mark != 0xFF or length < 2:
                return None
            if marker in _SKIPPED:
                at += 2 + length
                continue
            if marker == _SOS and frame is not None:
                one_scan = frame[0] not in _PROGRESSIVE and data[at + 4] == frame[4]
                return *frame, orientation, one_scan, at
            if marker == _APP1:
                orientation = orientation or in_app1(data[at + 4 : at + 2 + length])
            elif marker in _FRAMES and frame is None:
                frame = marker, *_frame(data, at + 4)
            elif marker == 0xFF:  # padding before a marker
                length = -1
            else:
                return None
            at += 2 + length
    except (struct.error, IndexError):  # the file ends before the first scan
        return None
    raise BadImage(f"a JPEG with more than {_MOST_SEGMENTS} segments before its pixels")


def decode_jpeg(data: bytes, how: Decoding) -> np.ndarray | None:
    """Returns the JPEG upright, at the largest n/8 that fits or 1/8; None if Pillow must decode it.

    Pillow decodes CMYK, so that colours equal those of torchvision, and all files with a fault:
    simplejpeg rejects even faults that libjpeg can repair (ImageNet has such files).

    Raises:
      BadImage: for a kind of JPEG that is not read, too many pixels or too many scans.
    """
    header = read_header(data)
    if header is None:
        return None
    process, bits, height, width, components, orientation, one_scan, scan = header
    if process not in _DECODED or bits != 8:
        raise BadImage(
            f"a JPEG with process SOF{process - 0xC0} and {bits} bits a channel; allowed: baseline "
            "or progressive with 8 bits"
        )
    if width * height > how.max_pixels:
        check_pixels(width, height, how.max_pixels)
    if not one_scan:
        check_scans(data.count(SCAN, scan), width, height)
    if components not in (1, 3):
        return None
    try:
        # Fast DCT and fast upsampling stay off: they change pixels by 1.3 of 255.
        if max(height, width) <= how.canvas:
            image = simplejpeg.decode_jpeg(data)
        else:
            # simplejpeg uses the smallest n/8 that is at least (h, w), which is (h, w) itself.
            h, w = _dct_size(height, width, how.canvas)
            image = simplejpeg.decode_jpeg(data, min_height=h, min_width=w)
    except ValueError:
        return None
    return upright(image, orientation) if orientation and how.exif_orientation else image


def _dct_size(height: int, width: int, canvas: int) -> tuple[int, int]:
    """Returns (h, w) of the largest n/8 that fits the canvas, or of 1/8; rounds up as libjpeg.

    libjpeg drops high frequencies while it decodes, which gives n/8 of the full size.
    """
    sizes = [(-(-height * n // 8), -(-width * n // 8)) for n in range(7, 0, -1)]
    return next((size for size in sizes if max(size) <= canvas), sizes[-1])
