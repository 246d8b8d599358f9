"""Decodes an image file or an array to uint8 RGB that fits a square canvas.

The host does nothing else with pixels. Crops and photometric operations run on the accelerator.
"""

import numpy as np
from PIL import Image

from moco_jax.data.loading import jpeg, pillow
from moco_jax.data.loading.decoding import BadImage, Decoding
from moco_jax.data.loading.pillow import Seen


def decode(
    data: bytes | np.ndarray | Image.Image, how: Decoding, seen: Seen = lambda largest: None
) -> np.ndarray:
    """Returns an image as uint8 RGB [h, w, 3] with h, w <= canvas.

    Pixels equal those of torchvision's `pil_loader` (`Image.open(f).convert('RGB')`): alpha is
    dropped and not composited. Two departures: the image is turned upright by its EXIF orientation
    if `how` says so, and of 16 bits the high 8 of the significant ones are kept; `convert` would
    clip 16-bit grey to white. Of several images in a file, the first is decoded.

    An image that is larger than the canvas keeps its aspect ratio. JPEGs are decoded at the
    largest scale n/8 that fits. What is still too large is averaged over whole boxes of pixels.

    Args:
      data: the bytes of an image file, a Pillow image, or a decoded uint8 array [H, W], [H, W, 1]
        or [H, W, 3].
      how: the options; `decoding_of` makes them from a config.
      seen: called with the largest value of an image with 16 bits a channel, before scaling.

    Raises:
      BadImage: if the data are empty, damaged, not an image of an allowed format, or take too much
        memory or time.
    """
    try:
        if isinstance(data, bytes) and data[:3] == jpeg.MAGIC:
            image = jpeg.decode_jpeg(data, how)
            if image is not None:
                return _shrink(image, how.canvas)
        return _shrink(_decoded(data, how, seen), how.canvas)
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error


def _decoded(data: bytes | np.ndarray | Image.Image, how: Decoding, seen: Seen) -> np.ndarray:
    """Returns an image as uint8 [H, W, 3] at its full size, without libjpeg-turbo's short way."""
    if isinstance(data, np.ndarray):
        return _rgb_array(data)
    if isinstance(data, Image.Image):
        with pillow.damage_is_bad_image():
            return pillow.from_image(data, how, seen)
    if not data:
        raise BadImage("the file is empty (0 bytes)")
    return pillow.decode_file(data, how, seen)


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


def _shrink(image: np.ndarray, canvas: int) -> np.ndarray:
    """Returns [H, W, 3] averaged over boxes; their side is the smallest that fits the canvas."""
    factor = -(-max(image.shape[:2]) // canvas)
    return image if factor <= 1 else np.asarray(Image.fromarray(image).reduce(factor))
