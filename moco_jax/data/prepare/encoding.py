"""The bytes of an image in a shard, and its name there."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.loading.orientation import ORIENTATION
from moco_jax.data.sources.archives.members import clean
from moco_jax.data.sources.file_types import is_image

_QUALITY = 90  # of JPEGs, with a side alone
# Stored pixels at full size: the orientation is copied.
_WHOLE = Decoding(canvas=1 << 30, exif_orientation=False)
_KEEPS_ORIENTATION = ("JPEG", "PNG", "WEBP")  # Pillow turns the others when it decodes them
_STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images are encoded again; without values they keep their bytes."""

    side: int | None = None  # of the shorter side, in pixels
    quality: int | None = None  # of JPEG, 1 to 100

    def apply(self, image: bytes | np.ndarray) -> tuple[bytes, str]:
        """Returns the bytes of an image file, and its ending if it is a new one, or ''.

        Raises:
          BadImage: if the image must be decoded and can't be.
        """
        if self.side is None and self.quality is None:
            return (image, "") if isinstance(image, bytes) else (_png(image), ".png")
        pixels = decode(image, _WHOLE)
        height, width = pixels.shape[:2]
        if self.side is not None and min(height, width) <= self.side:
            return (image, "") if isinstance(image, bytes) else (_png(image), ".png")
        return _jpeg(pixels, self.side, self.quality or _QUALITY, _orientation(image)), ".jpg"


def _jpeg(pixels: np.ndarray, side: int | None, quality: int, orientation: int) -> bytes:
    image = Image.fromarray(pixels)
    if side is not None:
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
    return file.getvalue()


def _orientation(image: bytes | np.ndarray) -> int:
    """Returns the EXIF orientation of an image file, 0 if it has none."""
    if not isinstance(image, bytes):
        return 0
    try:
        with Image.open(io.BytesIO(image), formats=_KEEPS_ORIENTATION) as opened:
            value = opened.getexif().get(ORIENTATION, 0)
    except Exception:  # Pillow raises many types; the pixels were decoded already
        return 0
    return value if isinstance(value, int) and 2 <= value <= 8 else 0


def common_folder(names: Sequence[str]) -> str:
    """Returns the folder, with its slash, that all names are in, or ''."""
    first, last = min(names), max(names)
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[: first.rfind("/", 0, same) + 1]


def key_and_ending(name: str, index: int, data: bytes) -> tuple[str, str]:
    """Returns the key of a sample and the ending of its image.

    A key has no dot in its last part: it would end there. An image without a file name is
    numbered, and its bytes decide the ending.
    """
    path = clean(name)
    if not is_image(path):
        ending = next((e for start, e in _STARTS.items() if data.startswith(start)), ".jpg")
        return f"{index:09}", ending
    folder, slash, base = path.rpartition("/")
    stem, _, ending = base.rpartition(".")
    return folder + slash + stem.replace(".", "_"), f".{ending}"
