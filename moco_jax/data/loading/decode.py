"""Decodes an image file or an array to uint8 RGB that fits a square canvas.

The host does nothing else with pixels. Crops and photometric operations run on the accelerator.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

_JPEG_MAGIC = b"\xff\xd8\xff"


class BadImage(ValueError):
    """Raised for an image that can't be read; the message has the reason."""


def decode(data: bytes | np.ndarray, canvas: int) -> np.ndarray:
    """Returns an image as uint8 RGB [h, w, 3] with h, w <= canvas.

    Pixels equal those of torchvision's `pil_loader` (`Image.open(f).convert('RGB')`): alpha is
    dropped and not composited, and the EXIF orientation is not applied. One departure: 16-bit grey
    keeps its high byte, as Pillow does for 16-bit RGB; `convert` would clip it to white.

    An image that is larger than the canvas keeps its aspect ratio. JPEGs are decoded at the
    largest scale n/8 that fits. What is still too large is averaged over whole boxes of pixels.

    Args:
      data: the bytes of an image file, or a decoded uint8 array [H, W], [H, W, 1] or [H, W, 3].
      canvas: longest allowed side in pixels.

    Raises:
      BadImage: if the data are empty, truncated, not an image, or have more pixels than Pillow's
        limit.
      ValueError: if canvas < 1.
    """
    if canvas < 1:
        raise ValueError(f"canvas must be at least 1 pixel, got {canvas}")
    if isinstance(data, np.ndarray):
        return _shrink(_rgb_array(data), canvas)
    if not data:
        raise BadImage("the file is empty (0 bytes)")
    if data[:3] == _JPEG_MAGIC and (image := _decode_jpeg(data, canvas)) is not None:
        return _shrink(image, canvas)
    return _decode_with_pillow(data, canvas)


def _rgb_array(array: np.ndarray) -> np.ndarray:
    """Returns a uint8 array as [H, W, 3]; grey becomes three equal channels."""
    if array.dtype != np.uint8:
        raise BadImage(f"the array is {array.dtype}; allowed: uint8")
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise BadImage(f"the array's shape is {array.shape}; allowed: [H, W], [H, W, 1], [H, W, 3]")
    if 0 in array.shape:
        raise BadImage(f"the array's shape is {array.shape}: it has no pixels")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _decode_jpeg(data: bytes, canvas: int) -> np.ndarray | None:
    """Returns the JPEG at the largest n/8 that fits, or 1/8; None if Pillow must decode it.

    Pillow decodes CMYK, so that colours equal those of torchvision, and all files with a fault:
    simplejpeg rejects even faults that libjpeg can repair (ImageNet has such files).
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(height), int(width)
        if colours in ("CMYK", "YCCK"):
            return None
        _check_pixels(width, height)
        # Fast DCT and fast upsampling stay off: they change pixels by 1.3 of 255.
        if max(height, width) <= canvas:
            return simplejpeg.decode_jpeg(data)
        # simplejpeg uses the smallest n/8 that is at least (h, w), which is (h, w) itself.
        h, w = _dct_size(height, width, canvas)
        return simplejpeg.decode_jpeg(data, min_height=h, min_width=w)
    except BadImage:
        raise
    except ValueError:
        return None


def _dct_size(height: int, width: int, canvas: int) -> tuple[int, int]:
    """Returns (h, w) of the largest n/8 that fits the canvas, or of 1/8; rounds up as libjpeg.

    libjpeg drops high frequencies while it decodes, which gives n/8 of the full size.
    """
    sizes = [(-(-height * n // 8), -(-width * n // 8)) for n in range(7, 0, -1)]
    return next((size for size in sizes if max(size) <= canvas), sizes[-1])


def _decode_with_pillow(data: bytes, canvas: int) -> np.ndarray:
    """Returns any image as [h, w, 3] that fits the canvas; every failure is a BadImage."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(*image.size)
            return _shrink(np.asarray(to_rgb(image)), canvas)
    except (BadImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        if data[:3] == _JPEG_MAGIC:
            raise BadImage(f"a JPEG of {len(data)} bytes whose header is damaged") from error
        start = bytes(data[:12])
        raise BadImage(f"no known image format; its {len(data)} bytes start {start!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow plugins raise many types on damaged files.
        raise BadImage(f"the file is damaged: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in mode RGB (see `decode` for 16 bits)."""
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers; allowed: 8 or 16 bit integers")
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8))
    elif "transparency" in image.info:
        # Pillow would warn about palettes with transparency; the colours are the same.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _shrink(image: np.ndarray, canvas: int) -> np.ndarray:
    """Returns [H, W, 3] averaged over boxes; their side is the smallest that fits the canvas."""
    factor = -(-max(image.shape[:2]) // canvas)
    return image if factor <= 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _check_pixels(width: int, height: int) -> None:
    """Raises BadImage where Pillow would only warn about a decompression bomb."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadImage(
            f"too many pixels: {width}x{height}; allowed: {limit} (PIL.Image.MAX_IMAGE_PIXELS)"
        )
