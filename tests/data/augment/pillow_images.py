"""Images and canvases for tests that compare with Pillow."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

_ARCHIVE = pathlib.Path(__file__).parents[3].parent / "shared" / "data" / "imagenet_samples.tar"


def images(count: int) -> list[Image.Image]:
    """Returns RGB images of different sizes: photographs if available, else generated images."""
    if not are_photographs():
        return [_generated(seed) for seed in range(count)]
    found = []
    with tarfile.open(_ARCHIVE) as archive:
        for member in archive:
            if not member.isfile():
                continue
            image = Image.open(io.BytesIO(archive.extractfile(member).read()))
            # The largest image decides the size of the canvas.
            if max(image.size) <= 500:
                found.append(image.convert("RGB"))
            if len(found) == count:
                break
    return found


def are_photographs() -> bool:
    """Returns whether `images` are photographs."""
    return _ARCHIVE.is_file()


def _generated(seed: int) -> Image.Image:
    """Returns a smooth image with noise, about 300 pixels wide and high."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(220, 420, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    texture = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8))


def canvas(images: list[Image.Image], *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8[B, H, W, 3] with noise around the images, and their sizes i32[B, 2]."""
    sizes = np.array([(image.height, image.width) for image in images], np.int32)
    shape = (len(images), *sizes.max(axis=0), 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.height, : image.width] = np.asarray(image)
    return pixels, sizes


def squares(images: list[Image.Image], side: int) -> list[Image.Image]:
    """Returns the images resized to squares, the input of photometric operations."""
    return [image.resize((side, side), Image.Resampling.BILINEAR) for image in images]


def planes(images: list[Image.Image]) -> np.ndarray:
    """Returns planes uint8[B, S, 3, S] of square images of one size."""
    return np.stack([np.asarray(image) for image in images]).swapaxes(2, 3)


def difference(got, expected: list[Image.Image]) -> np.ndarray:
    """Returns absolute differences of planes [B, S, 3, S] and images, in grey levels."""
    assert got.dtype == np.uint8
    return np.abs(np.asarray(got, np.float32) - planes(expected))
