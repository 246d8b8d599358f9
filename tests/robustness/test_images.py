"""Images are data: no file starts a program, takes the memory or the time, or ends a run.

A damaged or hostile file is an array of the right type or a BadImage with its reason.
"""

import ast
import os
import random
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.loading import pillow
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, Decoding
from tests.data.loading.image_files import encoded, smooth_image

CANVAS = 64
IMAGE = smooth_image(37, 50)
FOREIGN = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\nshowpage\n",
    "eps with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 99) + bytes(120),
    "pdf": b"%PDF-1.4\n%%EOF\n",
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
    "emf": b"\1\0\0\0".ljust(40, b"\0") + b" EMF" + bytes(100),
    "mic, fpx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1024),
    "psd": b"8BPS\0\1" + bytes(60),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "grib": b"GRIB" + bytes(60),
    "mpeg": b"\0\0\1\xb3" + bytes(60),
    "im": b"Image type: RGB\r\nImage size (x*y): 4*4\r\n".ljust(511) + b"\x1a" + bytes(48),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}
FOREIGN |= {
    name: encoded(IMAGE.convert(mode), name.upper())
    for name, mode in (
        [("ico", "RGB"), ("icns", "RGB"), ("tga", "RGB"), ("dds", "RGB")]
        + [("sgi", "RGB"), ("pcx", "RGB"), ("spider", "F"), ("xbm", "1"), ("dib", "RGB")]
        + [("msp", "1"), ("eps", "RGB"), ("pdf", "RGB")]
    )
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_refused_and_no_program_starts(name, monkeypatch):
    def fail(*args, **options):
        raise AssertionError(f"a program started: {args}")

    for module, function in (
        (subprocess, "Popen"), (os, "system"), (os, "popen"), (os, "posix_spawn"), (os, "execve")
    ):  # fmt: skip
        monkeypatch.setattr(module, function, fail)
    with pytest.raises(BadImage, match="no known image format; its .* bytes start"):
        decode(FOREIGN[name], Decoding(CANVAS))


def test_only_allowed_plugins_see_an_image(monkeypatch):
    assert set(pillow.readable_formats()) <= set(pillow.FORMATS)
    assert not {"EPS", "PDF", "PSD", "FITS", "WMF", "MIC", "FPX"} & set(pillow.FORMATS)
    Image.init()
    for name in Image.OPEN.keys() - set(pillow.FORMATS):
        broken = lambda *args: pytest.fail("another plugin saw the image")  # noqa: E731
        monkeypatch.setitem(Image.OPEN, name, (broken, broken))
    assert decode(encoded(IMAGE, "PNG"), Decoding(CANVAS)).shape == (37, 50, 3)
    with pytest.raises(BadImage):
        decode(FOREIGN["eps"], Decoding(CANVAS))


def test_the_package_opens_images_in_one_place(repository):
    """Every other call of `Image.open` must name its formats."""
    places = []
    for file in sorted((repository / "moco_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner.endswith("Image") and node.func.attr == "open":
                    assert "formats" in {keyword.arg for keyword in node.keywords}, file
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "Image.OPEN":
                places.append(file.name)
            if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                assert "open" not in {alias.name for alias in node.names}, file
    assert set(places) == {"pillow.py"}


def with_scans(side, scans, components="L"):
    """Returns a progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new(components, (side, side)), "JPEG", progressive=True)
    table = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    more = scans - data.count(b"\xff\xda")
    return data[:-2] + data[table:-2] * more + data[-2:]


def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(min(width + 1, 100) * min(height, 100))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + pixels


def gif(screen, frame, between=b""):
    colours = b"\0\0\0\xff\xff\xff"
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + colours + between
    shown = b"\x21\xf9\4\x09\0\0\0\0\x2c" + struct.pack("<4HB", 0, 0, *frame, 0)
    return head + (shown + b"\2\2\x4c\1\0") * 1000 + b";"


def webp_canvas(width, height):
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas + encoded(IMAGE, "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def tiff(*changes, extra=b""):
    """Returns a grey TIFF of 64 x 64 pixels; `changes` are tags (tag, type, count, value)."""
    tags = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, 64), 279: (4, 1, 4096)}
    tags |= {tag: rest for tag, *rest in changes}
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    # The next directory is this one again.
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\x08\0\0\0" + extra


def bmp_rle(side, rle):
    size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rle), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rle), 0, 0, 1078) + size + bytes(1024) + rle


def avif_size(side):
    data = bytearray(encoded(IMAGE, "AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", side, side)
    return bytes(data)


BMP = encoded(IMAGE, "BMP")
FRAME = encoded(IMAGE, "JPEG")
START = FRAME.index(b"\xff\xc0")
HOSTILE = {
    "jpeg of 300 scans": (with_scans(4000, 300), "JPEG of 4000x4000 pixels in 300 scans takes too"),
    "jpeg of 300 scans, a fault": (
        with_scans(4000, 300)[:-2] + b"\0\0\xff\xd9",
        "in 300 scans takes too long to decode; allowed for this size: 32 scans",
    ),
    "jpeg of 12 bits": (
        FRAME[: START + 4] + b"\x0c" + FRAME[START + 5 :],
        "SOF0 and 12 bits a channel; allowed: baseline or progressive with 8 bits",
    ),
    "lossless jpeg": (FRAME[: START + 1] + b"\xc3" + FRAME[START + 2 :], "process SOF3 and 8 bits"),
    "jpeg of 100,000 segments": (
        b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000,
        "more than 10000 segments before its pixels",
    ),
    "jpeg of padding": (b"\xff\xd8" + b"\xff" * (20 << 20), "more than 10000 segments"),
    "jpeg of padding, a fault": (
        b"\xff\xd8\xff\0" + b"\xff" * (20 << 20),
        "without pixels in its first 16777216 bytes",
    ),
    "jpeg of 65535 pixels": (
        FRAME[: START + 5] + b"\xff\xff\xff\xff" + FRAME[START + 9 :],
        "too many pixels: 65535x65535",
    ),
    "png of 2**31 pixels": (png(2**31 - 1, 2**31 - 1), "too many pixels: 2147483647x"),
    "png of 300,000 chunks": (png(8, 8, chunk(b"prVt", b"") * 300_000), "200000 chunks"),
    "png of a long text": (
        png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))),
        "too large",
    ),
    "png of a long profile": (
        png(8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))),
        "too large",
    ),
    "gif of a large screen": (gif((65535, 65535), (1, 1)), "too many pixels: 65535x65535"),
    "gif of a large frame": (gif((1, 1), (65535, 65535)), "too many pixels: 65535x65535"),
    "gif of a long comment": (
        gif((8, 8), (8, 8), b"\x21\xfe" + b"\1a" * 300_000 + b"\0"),
        "200000 blocks",
    ),
    "webp of a large canvas": (webp_canvas(16383, 16383), "too many pixels: 16383x16383"),
    "webp of a larger canvas": (webp_canvas(2**24, 2**24), "too many pixels: 16777216x"),
    "bmp of 2**31 pixels": (
        BMP[:18] + struct.pack("<ii", 2**31 - 1, -(2**31)) + BMP[26:],
        "too many pixels: 2147483647x2147483648",
    ),
    "bmp of runs": (bmp_rle(9000, b"\0\1"), "BMP of 9000x9000 pixels in a coding that takes too"),
    "ppm of a long header": (b"P6" + b" " * 1_000_000, "header has more than 65536 bytes"),
    "ppm of a long comment": (b"P6 #" + b"a" * 1_000_000, "header has more than 65536 bytes"),
    "ppm of 10**18 pixels": (b"P6 1000000000 1000000000 255 ", "too many pixels: 1000000000x"),
    "ppm of text": (b"P3 3000 3000 255 1 2 3", "PPM of 3000x3000 pixels in a coding"),
    "tiff of a large tile": (
        tiff((322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 8), (325, 4, 1, 64)),
        "too many pixels: 2147483632x",
    ),
    "tiff of many samples": (tiff((277, 3, 1, 65535)), "header is damaged"),
    "tiff of 2**32 strips": (tiff((273, 4, 2**32 - 1, 8)), "damaged"),
    "big tiff of 2**60 tags": (
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60),
        "more than 200000 tags",
    ),
}
if "AVIF" in pillow.readable_formats():
    HOSTILE["avif of 30000 pixels"] = (avif_size(30000), "AVIF of .* bytes whose header is damaged")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_reason(name):
    data, reason = HOSTILE[name]
    with pytest.raises(BadImage, match=reason):
        decode(data, Decoding(CANVAS))


@pytest.mark.parametrize("side, scans", [(2000, 10), (2000, 32), (400, 300)])
def test_usual_numbers_of_scans_are_decoded(side, scans):
    assert 50 <= max(decode(with_scans(side, scans), Decoding(CANVAS)).shape) <= CANVAS


def test_a_loop_of_directories_and_many_frames_are_read_once():
    assert decode(gif((8, 8), (1, 1)), Decoding(CANVAS)).shape == (8, 8, 3)
    pixels = tiff((259, 3, 1, 1), extra=bytes(4096))
    assert decode(pixels, Decoding(CANVAS)).shape == (64, 64, 3)


def _seeds():
    grey = IMAGE.convert("L")
    exif = Image.Exif()
    exif[0x112], exif[0x010F] = 6, "a maker"
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    files = {
        "jpeg": encoded(IMAGE, "JPEG", exif=exif),
        "jpeg progressive": encoded(IMAGE, "JPEG", progressive=True, exif=exif),
        "jpeg cmyk": encoded(IMAGE.convert("CMYK"), "JPEG"),
        "jpeg grey": encoded(grey, "JPEG", restart_marker_blocks=2),
        "mpo": encoded(IMAGE, "MPO", save_all=True, append_images=[IMAGE]),
        "png": encoded(IMAGE, "PNG", exif=exif),
        "png palette": encoded(IMAGE.quantize(16), "PNG", transparency=bytes(range(16))),
        "png 16": encoded(deep, "PNG"),
        "apng": encoded(IMAGE, "PNG", save_all=True, append_images=[IMAGE.rotate(90)]),
        "webp": encoded(IMAGE, "WEBP", exif=exif),
        "webp lossless": encoded(IMAGE, "WEBP", lossless=True),
        "gif": encoded(IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(90)]),
        "bmp": encoded(IMAGE, "BMP"),
        "bmp palette": encoded(IMAGE.quantize(16), "BMP"),
        "bmp rle": bmp_rle(8, b"\4\1\0\0\0\1"),
        "ppm": encoded(IMAGE, "PPM"),
        "pgm": encoded(deep, "PPM"),
        "ppm text": b"P3 2 2 255 " + b"1 2 3 " * 4,
        "tiff 16": encoded(deep, "TIFF", exif=exif),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff {compression}"] = encoded(IMAGE, "TIFF", compression=compression)
    files["tiff group4"] = encoded(IMAGE.convert("1"), "TIFF", compression="group4")
    if "AVIF" in pillow.readable_formats():
        files["avif"] = encoded(IMAGE, "AVIF", exif=exif)
    return files


SEEDS = _seeds()
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutated(rng, data):
    """Returns the file with some bits flipped, numbers changed, parts cut, doubled or replaced."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Headers are where the structure is.
        at = rng.randrange(min(len(data), 400) if rng.random() < 0.6 else len(data))
        length = rng.choice((1, 2, 4, 8, rng.randrange(1, len(data) + 1)))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            size, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
            data[at : at + size] = (rng.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, order)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            other = rng.choice(tuple(SEEDS.values()))
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        else:
            del data[at + 1 :]
        if not data:
            break
    return bytes(data)


def _fuzz(seed, count, capfd):
    """Decodes mutated files; returns how many of them gave an image."""
    rng, readable = random.Random(seed), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):
            name = rng.choice(tuple(SEEDS))
            data = mutated(rng, SEEDS[name])
            how = Decoding(CANVAS, rng.random() < 0.8, rng.choice((8, 12, 16)), 4_000_000)
            try:
                image = decode(data, how)
            except BadImage as error:
                assert str(error)
                continue
            except BaseException as error:
                error.add_note(f"{name}, seed {seed}, number {number}")
                raise
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert 0 < max(image.shape[:2]) <= CANVAS and min(image.shape) > 0
            readable += 1
    # libtiff prints the errors of its parser; each image may print some.
    assert len(capfd.readouterr().err.splitlines()) <= count
    return readable


@pytest.mark.parametrize("seed", range(3))
def test_mutated_images_are_images_or_bad_images(seed, capfd):
    assert 50 < _fuzz(seed, 1000, capfd) < 950


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_mutated_images_are_images_or_bad_images(seed, capfd):
    assert 1000 < _fuzz(seed, 20_000, capfd) < 19_000
