"""How images are decoded: options, limits, and the error for an image that can't be read."""

import dataclasses

from ml_collections import ConfigDict

MAX_MEGAPIXELS = 89.5  # default of data.max_megapixels; Pillow's own limit, rounded
_MEGA = 1_000_000

# libjpeg visits every pixel once a scan (0.4 ms a megapixel for an empty scan in one channel, 1.5
# ms in three). Encoders write at most about 15 scans, and a second image or a thumbnail adds its
# own.
_USUAL_SCANS = 32
_MOST_SCANNED_PIXELS = 500 * _MEGA  # of an image with more scans: below a second


class BadImage(ValueError):
    """Raised for an image that can't be read; the message has the reason."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How images are decoded. `decoding_of` makes it from a config.

    Attributes:
      canvas: longest allowed side of a decoded image, in pixels.
      exif_orientation: whether images are turned upright by their EXIF orientation.
      bit_depth: significant bits of images with 16 bits a channel, 8 to 16.
      max_pixels: an image with more pixels is unreadable.
    """

    canvas: int
    exif_orientation: bool = True
    bit_depth: int = 16
    max_pixels: int = round(MAX_MEGAPIXELS * _MEGA)

    def __post_init__(self):
        if self.canvas < 1:
            raise ValueError(f"canvas must be at least 1 pixel, got {self.canvas}")
        if not 8 <= self.bit_depth <= 16:
            raise ValueError(f"bit_depth must be 8 to 16, got {self.bit_depth}")


def megapixels(number: float) -> int:
    """Returns the pixels of this many megapixels."""
    return round(number * _MEGA)


def decoding_of(config: ConfigDict) -> Decoding:
    """Returns how images are decoded; `config` is `data` of the whole config."""
    return Decoding(
        config.canvas,
        config.exif_orientation,
        config.bit_depth,
        megapixels(config.max_megapixels),
    )


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises BadImage for an image with more pixels than allowed."""
    if width * height > max_pixels:
        raise BadImage(
            f"too many pixels: {width}x{height} are {width * height / _MEGA:.1f} megapixels; "
            f"allowed: {max_pixels / _MEGA:g} (--config.data.max_megapixels)"
        )


def check_scans(scans: int, width: int, height: int) -> None:
    """Raises BadImage for a JPEG whose scans would take long to decode."""
    if scans > _USUAL_SCANS and scans * width * height > _MOST_SCANNED_PIXELS:
        raise BadImage(
            f"a JPEG of {width}x{height} pixels in {scans} scans takes too long to decode; allowed "
            f"for this size: {max(_USUAL_SCANS, _MOST_SCANNED_PIXELS // (width * height))} scans "
            "(encoders write about 10)"
        )
