"""Images are turned upright as Pillow's `exif_transpose` does, whatever their EXIF data hold."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from moco_jax.data.loading import pillow
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.loading.orientation import in_app1
from tests.data.loading.image_files import encoded, pil_loader, smooth_image

IMAGE = smooth_image(48, 80)
FORMATS = [
    name
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    if name != "AVIF" or "AVIF" in pillow.readable_formats()
]


def exif(orientation):
    found = Image.Exif()
    found[0x010F] = "a maker of phones"
    found[0x0112] = orientation
    return found


def turned(data):
    """Returns the pixels after Pillow's own `exif_transpose`."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", [*FORMATS, "JPEG CMYK"])
def test_all_orientations_are_those_of_pillow(image_format, orientation):
    image = IMAGE.convert("CMYK") if image_format.endswith("CMYK") else IMAGE
    data = encoded(image, image_format.split()[0], exif=exif(orientation))
    expected = turned(data)
    assert expected.shape == ((80, 48, 3) if orientation >= 5 else (48, 80, 3))
    np.testing.assert_array_equal(decode(data, Decoding(80)), expected)
    if image_format != "TIFF":  # Pillow turns a TIFF itself
        raw = decode(data, Decoding(80, exif_orientation=False))
        np.testing.assert_array_equal(raw, pil_loader(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("canvas", [40, 20, 7])
def test_images_over_the_canvas_are_turned_too(image_format, orientation, canvas):
    plain = decode(encoded(IMAGE, image_format), Decoding(canvas))
    data = encoded(IMAGE, image_format, exif=exif(orientation))
    expected = ImageOps.exif_transpose(_with_exif(plain, orientation))
    found = decode(data, Decoding(canvas))
    assert found.shape == np.asarray(expected).shape and max(found.shape) <= canvas
    # A box at the edge has fewer pixels, and the other edge is it after turning.
    assert np.abs(found.astype(int) - np.asarray(expected)).max() < (1 if canvas > 7 else 60)


def _with_exif(pixels, orientation):
    return Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "PNG", exif=exif(orientation))))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("orientation", [None, 1])
def test_without_an_orientation_nothing_changes(image_format, orientation):
    options = {} if orientation is None else {"exif": exif(orientation)}
    data = encoded(IMAGE, image_format, **options)
    np.testing.assert_array_equal(decode(data, Decoding(80)), pil_loader(data))


def test_an_orientation_in_xmp_is_read():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(IMAGE, "JPEG", xmp=xmp)
    np.testing.assert_array_equal(decode(data, Decoding(80)), turned(data))
    assert decode(data, Decoding(80)).shape == (80, 48, 3)


def test_a_pillow_image_is_turned_too():
    data = encoded(IMAGE, "PNG", exif=exif(8))
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(image, Decoding(80)), turned(data))


def tiff(order, *entries, start=8, count=None):
    """Returns EXIF data with entries (tag, type, number of values, value)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    body = struct.pack(f"{order}H", len(entries) if count is None else count)
    for tag, kind, values, value in entries:
        packed = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value).ljust(4, b"\0")
        body += struct.pack(f"{order}HHI", tag, kind, values) + packed
    return head + body


MALFORMED = {
    "empty": b"",
    "no directory": b"II*\0",
    "far directory": tiff("<", (0x112, 3, 1, 6), start=2**32 - 1),
    "unknown order": b"XX" + tiff("<", (0x112, 3, 1, 6))[2:],
    "too many entries": tiff("<", count=65535),
    "a string": tiff("<", (0x112, 2, 4, 0x36363636)),
    "no value": tiff("<", (0x112, 3, 0, 6)),
    "a value of 9": tiff(">", (0x112, 3, 1, 9)),
    "a value of 0": tiff(">", (0x112, 3, 1, 0)),
    "a value of 2**32 - 1": tiff(">", (0x112, 4, 1, 2**32 - 1)),
    "cut": tiff("<", (0x112, 3, 1, 6))[:-6],
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_data_leave_the_image_readable(name, image_format):
    data = encoded(IMAGE, image_format, exif=b"Exif\0\0" + MALFORMED[name])
    expected = pil_loader(encoded(IMAGE, image_format))
    np.testing.assert_array_equal(decode(data, Decoding(80)), expected)
    with_a_fault = data[:-2] + b"\0\0" + data[-2:] if image_format == "JPEG" else data
    np.testing.assert_array_equal(decode(with_a_fault, Decoding(80)), expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4])
def test_any_byte_order_type_and_place_of_the_tag_is_read(order, kind):
    entries = [(0x100, 4, 1, 7), (0x112, kind, 1, 6), (0x11A, 3, 1, 8)]
    assert in_app1(b"Exif\0\0" + tiff(order, *entries)) == 6


def test_a_cut_exif_segment_never_raises():
    whole = b"Exif\0\0" + tiff("<", (0x100, 4, 1, 7), (0x112, 3, 1, 6))
    assert in_app1(whole) == 6
    for length in range(len(whole)):
        assert in_app1(whole[:length]) in (0, 6)
