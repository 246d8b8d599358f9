"""16-bit images are scaled by their significant bits; the limit of pixels is the config's."""

import io
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from moco_jax import config as config_lib
from moco_jax.data.loading import pillow
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, Decoding, decoding_of
from tests.data.loading.image_files import encoded, smooth_image

IMAGE = smooth_image(60, 81)


def png16(values, colour_type):
    """Returns a PNG of values uint16 [H, W, C]; Pillow can't write 16-bit colours."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff16(values, order, compressed=False):
    """Returns a TIFF with three colours of 16 bits, of values uint16 [H, W, 3]."""
    height, width, _ = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8 + len(pixels)),
        (259, 3, 1, 8 if compressed else 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 14 + len(pixels))
    body = pixels + struct.pack(f"{order}3H", 16, 16, 16) + struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        one_short = kind == 3 and count == 1
        packed = struct.pack(
            f"{order}{'HH' if one_short else 'I'}", *([value, 0] if one_short else [value])
        )
        body += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return head + body + bytes(4)


RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 1 << 16, (5, 7, 3)).astype(np.uint16)
FILES = {
    "png grey": lambda x: png16(x[..., :1], 0),
    "png grey, alpha": lambda x: png16(x[..., :2], 4),
    "png": lambda x: png16(x, 2),
    "png, alpha": lambda x: png16(np.concatenate([x, x[..., :1]], 2), 6),
    "tiff grey": lambda x: encoded(Image.fromarray(x[..., 0]), "TIFF"),
    "tiff grey lzw": lambda x: encoded(Image.fromarray(x[..., 0]), "TIFF", compression="tiff_lzw"),
    "tiff little": lambda x: tiff16(x, "<"),
    "tiff big": lambda x: tiff16(x, ">"),
    "tiff deflate": lambda x: tiff16(x, "<", compressed=True),
    "tiff big deflate": lambda x: tiff16(x, ">", compressed=True),
    "pgm": lambda x: encoded(Image.fromarray(x[..., 0]), "PPM"),
}


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("name", FILES)
def test_the_high_8_of_the_significant_bits_are_kept(name, bits):
    values = COLOURS >> 16 - bits
    seen = []
    image = decode(FILES[name](values), Decoding(32, bit_depth=bits), seen.append)
    values = values[..., :1] if "grey" in name or name == "pgm" else values
    np.testing.assert_array_equal(image, np.broadcast_to(values >> bits - 8, (5, 7, 3)))
    if bits < 14:
        assert seen == [values.max()]


@pytest.mark.parametrize("name", FILES)
def test_values_above_the_significant_bits_are_white(name):
    values = np.full((5, 7, 3), 5000, np.uint16)
    assert (decode(FILES[name](values), Decoding(32, bit_depth=12)) == 255).all()


@pytest.mark.parametrize("name", FILES)
def test_16_bits_keep_the_high_byte(name):
    image = decode(FILES[name](COLOURS), Decoding(32))
    values = COLOURS[..., :1] if "grey" in name or name == "pgm" else COLOURS
    np.testing.assert_array_equal(image, np.broadcast_to(values >> 8, (5, 7, 3)))


def test_a_pgm_that_states_its_maximum_is_scaled_by_it():
    values = np.array([[0, 1023, 512]], ">u2")
    image = decode(b"P5 3 1 1023\n" + values.tobytes(), Decoding(32, bit_depth=12))
    assert image[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    "values, message",
    [
        (np.ones((4, 4), np.float32), "its pixels are floating-point numbers"),
        (np.ones((4, 4), np.int32), "its pixels are 32-bit numbers; allowed: 8 or 16 bit"),
    ],
)
def test_other_numbers_are_bad_images(values, message):
    with pytest.raises(BadImage, match=message):
        decode(encoded(Image.fromarray(values), "TIFF"), Decoding(32))


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_integers_beyond_16_bits_are_bad_images(value):
    image = Image.fromarray(np.array([[0, value]], np.int32))
    with pytest.raises(BadImage, match=rf"values from .*{value}.*; allowed: 0 to 65535"):
        decode(image, Decoding(32))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("pillows", [1000, None])
def test_the_limit_of_pixels_is_the_configs_and_not_pillows(image_format, pillows, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)  # Pillow raises above twice its limit
    data = encoded(IMAGE, image_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, Decoding(81, max_pixels=81 * 60)).shape == (60, 81, 3)
        with pytest.raises(
            BadImage,
            match=r"too many pixels: 81x60 are 0.0 megapixels; allowed: 0.004859 "
            r"\(--config.data.max_megapixels\)",
        ):
            decode(data, Decoding(81, max_pixels=81 * 60 - 1))
    assert Image.MAX_IMAGE_PIXELS == pillows


def test_pillows_limit_is_restored_after_threads_that_exceed_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(IMAGE, "TIFF", compression="tiff_lzw")
    shapes = []
    work = lambda: shapes.extend(decode(data, Decoding(81)).shape for _ in range(50))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(60, 81, 3)] * 400 and Image.MAX_IMAGE_PIXELS == 1000


def test_the_options_are_those_of_the_config():
    data = config_lib.base().data
    assert decoding_of(data) == Decoding(512, True, 16, 89_500_000)
    data.update({"canvas": 8, "exif_orientation": False, "bit_depth": 12, "max_megapixels": 0.5})
    assert decoding_of(data) == Decoding(8, False, 12, 500_000)


def test_the_first_of_several_images_is_decoded():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for image_format in ("GIF", "TIFF", "WEBP", "PNG", "MPO"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        assert decode(data, Decoding(8))[4, 4, 0] > 250, image_format


def test_heic_is_read_with_pillow_heif():
    pytest.importorskip("pillow_heif")
    pillow.readable_formats()
    data = encoded(IMAGE, "HEIF", quality=100)
    assert np.abs(decode(data, Decoding(81)).astype(int) - np.asarray(IMAGE)).mean() < 10


def test_without_pillow_heif_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pillow.readable_formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(BadImage, match=r"HEIC image; pip install 'moco-jax\[heic\]' makes it"):
        decode(b"\0\0\0\x18ftypheic" + bytes(100), Decoding(8))
    pillow.readable_formats.cache_clear()


def test_a_truncated_file_names_its_format():
    with pytest.raises(BadImage, match="a TIFF of 100 bytes whose header is damaged"):
        decode(encoded(IMAGE, "TIFF")[:100], Decoding(8))
    assert isinstance(Image.open(io.BytesIO(encoded(IMAGE, "TIFF"))), Image.Image)
