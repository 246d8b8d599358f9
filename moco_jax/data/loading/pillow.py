"""Decodes images of all allowed formats with Pillow, within the limits of `Decoding`."""

import contextlib
import ctypes
import functools
import importlib
import io
import re
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile, features

from moco_jax.data.loading import jpeg
from moco_jax.data.loading.decoding import BadImage, Decoding, check_pixels, check_scans
from moco_jax.data.loading.headers import check_header
from moco_jax.data.loading.orientation import ORIENTATION, upright

# No other plugin of Pillow sees an image: the one of PostScript starts Ghostscript. JPEG reads MPO
# too. HEIF needs pillow-heif (`pip install 'moco-jax[heic]'`).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "AVIF": "AvifImagePlugin",
}
_HEIC = re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)

_MAX_SLOW_PIXELS = 2_000_000  # for decoders in Python (about 0.5 us a pixel and channel)
_SLOW_CODECS = ("ppm", "ppm_plain", "bmp_rle")

_SCALED_CODECS = ("ppm", "ppm_plain")  # they scale to 16 bits, as the file asks for
_BITS_PER_SAMPLE, _TILE_WIDTH, _TILE_LENGTH = 258, 322, 323  # tags of TIFF
_DARK = 32  # high bytes below it: values below 2**13
# Codings of 16-bit colours -> codings of which Pillow keeps the low bytes.
_GREY_ALPHA = "LA;16B"
_NATIVE = "L" if sys.byteorder == "little" else "B"
_LOW_BYTES = {_GREY_ALPHA: "RGBA"} | {
    f"{mode};16{order}": f"{mode};16{'B' if order.replace('N', _NATIVE) == 'L' else 'L'}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order in "BLN"
}

# Called with the largest value of an image with 16 bits a channel.
Seen = Callable[[int], None]


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns those of FORMATS that this installation reads, registered in Pillow."""
    # Only these plugins are imported; `PIL.Image.init` would import all.
    for plugin in _PLUGINS.values():
        with contextlib.suppress(ImportError):  # Pillow below 11.3 has no AVIF
            importlib.import_module(f"PIL.{plugin}")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(AttributeError):  # libtiff is linked otherwise
        # Its errors come as a BadImage too; it would print one for each row of a damaged image.
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    absent = {name for name, codec in (("WEBP", "webp"), ("AVIF", "avif")) if not _has(codec)}
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in absent)


def _has(codec: str) -> bool:
    return codec in features.modules and bool(features.check(codec))


def decode_file(data: bytes, how: Decoding, seen: Seen) -> np.ndarray:
    """Returns the first image of a file as uint8 [H, W, 3]; every failure is a BadImage."""
    with damage_is_bad_image(), opened(data, how.max_pixels) as image:
        if not _has_16_bit_colours(image):
            return from_image(image, how, seen)
        pixels = _from_16_bit_colours(data, image, how, seen)
        return _turned(pixels, image, how)


@contextlib.contextmanager
def damage_is_bad_image() -> Iterator[None]:
    """Turns every error of Pillow into a BadImage, and silences its warnings."""
    _ignore_warnings()
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise many types on damaged files.
        why = str(error) or type(error).__name__
        raise BadImage(f"the file is damaged: {why}") from error


def from_image(image: Image.Image, how: Decoding, seen: Seen) -> np.ndarray:
    """Returns a Pillow image as uint8 [H, W, 3], upright if `how` says so.

    Raises:
      BadImage: if it has too many pixels, or pixels that are not integers of 8 or 16 bits.
    """
    check_pixels(*image.size, how.max_pixels)
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers; allowed: 8 or 16 bit integers")
    if image.mode.startswith("I"):
        bits = _grey_bits(image, how)  # before Pillow loads the image and forgets its coding
        grey = _eight_bits(_grey_values(image), bits, seen)
        return _turned(np.repeat(grey[..., None], 3, axis=2), image, how)
    rgb = image
    if "transparency" in image.info:
        # Pillow would warn about palettes with transparency; the colours are the same.
        rgb = image.convert("RGBA")
    return _turned(np.asarray(rgb.convert("RGB")), image, how)


@contextlib.contextmanager
def opened(
    data: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS
) -> Iterator[ImageFile.ImageFile]:
    """Yields the first image of a file, not decoded yet; its number of pixels is allowed.

    Pillow's own limit plays no role: `PIL.Image.open` would warn about it and refuse more.

    Raises:
      BadImage: if no allowed plugin accepts the data, or the image has too many pixels.
    """
    size = check_header(data)
    check_pixels(*size, max_pixels)
    damaged = None
    for name in readable_formats():
        factory, accept = Image.OPEN[name]
        if name in formats and accept and accept(data[:16]) is True:
            try:
                with _pillow_limit.lifted(size):
                    image = factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                damaged = name  # unless another format accepts it, as in `PIL.Image.open`
                continue
            with image, _pillow_limit.lifted(image.size):
                _check_cost(data, image, max_pixels)
                yield image
            return
    raise BadImage(_unknown(data, damaged))


def _check_cost(data: bytes, image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Raises BadImage for an image that takes too much memory or time to decode."""
    width, height = image.size
    check_pixels(width, height, max_pixels)
    if data.startswith(jpeg.MAGIC):
        check_scans(data.count(jpeg.SCAN), width, height)
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if all(isinstance(side, int) for side in tile):
        check_pixels(*tile, max_pixels)  # libtiff allocates a whole tile
    if width * height > _MAX_SLOW_PIXELS and any(tile[0] in _SLOW_CODECS for tile in image.tile):
        raise BadImage(
            f"a {image.format} of {width}x{height} pixels in a coding that takes too long to "
            f"decode; allowed: {_MAX_SLOW_PIXELS} pixels"
        )


def _unknown(data: bytes, damaged: str | None) -> str:
    """Returns why no plugin reads the data; the plugin `damaged` accepts how they start."""
    if _HEIC.match(data) and "HEIF" not in readable_formats():
        return "a HEIC image; pip install 'moco-jax[heic]' makes it readable"
    if damaged:
        article = "an" if damaged == "AVIF" else "a"
        return f"{article} {damaged} of {len(data)} bytes whose header is damaged"
    return f"no known image format; its {len(data)} bytes start {bytes(data[:12])!r}"


class _PillowLimit:
    """Pillow's limit of pixels, a global variable, lifted while threads decode larger images."""

    def __init__(self):
        self._lock, self._threads, self._limit = threading.Lock(), 0, None

    @contextlib.contextmanager
    def lifted(self, size: tuple[int, int]) -> Iterator[None]:
        """Some plugins apply the limit while they decode; a smaller image leaves it alone."""
        with self._lock:
            limit = self._limit if self._threads else Image.MAX_IMAGE_PIXELS
            lifts = limit is not None and size[0] * size[1] > limit
            if lifts:
                self._threads += 1
                self._limit, Image.MAX_IMAGE_PIXELS = limit, None
        try:
            yield
        finally:
            if lifts:
                with self._lock:
                    self._threads -= 1
                    if not self._threads:
                        Image.MAX_IMAGE_PIXELS = self._limit


_pillow_limit = _PillowLimit()


def _turned(pixels: np.ndarray, image: Image.Image, how: Decoding) -> np.ndarray:
    """Returns the pixels of a loaded image upright, if they shall be."""
    if not how.exif_orientation:
        return pixels
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF data do not make an image unreadable
        return pixels
    return upright(pixels, orientation) if isinstance(orientation, int) else pixels


def _grey_values(image: Image.Image) -> np.ndarray:
    """Returns the values [H, W] of an image of mode I or I;16: 0 to 65535."""
    if 32 in _sample_bits(image):
        raise BadImage("its pixels are 32-bit numbers; allowed: 8 or 16 bit integers")
    values = np.asarray(image)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 0xFFFF:
        raise BadImage(f"its pixels have values from {low} to {high}; allowed: 0 to 65535")
    return values


def _grey_bits(image: Image.Image, how: Decoding) -> int:
    """Returns the significant bits of a grey image: those that the file states, or the config's."""
    if any(tile[0] in _SCALED_CODECS for tile in getattr(image, "tile", ())):
        return 16
    return 12 if _sample_bits(image) == (12,) else how.bit_depth


def _sample_bits(image: Image.Image) -> tuple[int, ...]:
    """Returns the bits of each channel that a TIFF states, () for other formats."""
    found = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return found if isinstance(found, tuple) else (found,)


def _eight_bits(values: np.ndarray, bits: int, seen: Seen) -> np.ndarray:
    """Returns the high 8 of the significant bits; larger values become 255."""
    seen(int(values.max(initial=0)))
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8)


def _has_16_bit_colours(image: ImageFile.ImageFile) -> bool:
    return image.mode in ("RGB", "RGBA", "CMYK") and (
        16 in _sample_bits(image) or any(";16" in _coding(tile) for tile in image.tile)
    )


def _coding(tile: Any) -> str:
    """Returns how the pixels of a part of a file are laid out, in Pillow's raw modes."""
    args = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return args if isinstance(args, str) else ""


def _from_16_bit_colours(data: bytes, image: Image.Image, how: Decoding, seen: Seen) -> np.ndarray:
    """Returns a PNG or TIFF with 16 bits a colour as uint8 [H, W, 3].

    Raises:
      BadImage: if fewer bits are significant, and Pillow can't read the low bytes of this layout.
    """
    high = np.asarray(image.convert("RGB"))  # the high bytes
    if how.bit_depth == 16 and high.max(initial=0) >= _DARK:
        return high
    low = _low_bytes(data, how)
    if low is None:
        if how.bit_depth == 16:
            return high
        raise BadImage(
            "the low bytes of its 16-bit colours can't be read in this layout; save it as PNG"
        )
    return _eight_bits(high.astype(np.uint16) << 8 | low, how.bit_depth, seen)


def _low_bytes(data: bytes, how: Decoding) -> np.ndarray | None:
    """Returns the low bytes [H, W, 3] of 16-bit colours, or None if Pillow can't read them.

    Pillow keeps high bytes only. Reading the bytes in the wrong order makes the low bytes the high
    ones. Grey with alpha is read as four channels of 8 bits: both bytes of both.
    """
    with opened(data, how.max_pixels) as image:
        codings = [_coding(tile) for tile in image.tile]
        if not codings or not set(codings) <= _LOW_BYTES.keys():
            return None
        image.tile = [
            tile._replace(args=_with_coding(tile.args, _LOW_BYTES[coding]))
            for tile, coding in zip(image.tile, codings, strict=True)
        ]
        if codings[0] == _GREY_ALPHA:
            return np.asarray(image)[..., 1:2]
        return np.asarray(image.convert("RGB"))


def _with_coding(args: Any, coding: str) -> Any:
    return (coding, *args[1:]) if isinstance(args, tuple) else coding


_SILENT = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


def _ignore_warnings() -> None:
    """Silences Pillow's warnings about damaged metadata, one for each file otherwise.

    `warnings.catch_warnings` is not safe in threads. The filter is looked for at each image, since
    the surrounding code may restore the filters.
    """
    if _SILENT not in warnings.filters:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
