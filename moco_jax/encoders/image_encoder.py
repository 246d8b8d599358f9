"""A pretrained encoder as a function of images: `moco_jax.load`."""

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from PIL import Image

from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import BadImage, decode, to_rgb
from moco_jax.encoders import pretrained
from moco_jax.encoders.features import make_encode
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.pipeline import pipelined

_LEAST_CANVAS = 32  # pixels

ImageLike = np.ndarray | bytes | str | os.PathLike | Image.Image


def load(
    path: str | os.PathLike, *, output: str = "backbone", batch_size: int = 256
) -> "ImageEncoder":
    """Returns a pretrained encoder that turns images into features.

    Args:
      path: a run's workdir, one of its checkpoints, or an encoder's .safetensors.
      output: 'backbone', the pooled features, which is what transfers; or 'head', the unit vectors
        that pretraining compares.
      batch_size: images encoded at once, over all devices of this process.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if there is something else, or it has no such output.
    """
    return ImageEncoder(pretrained.read(path), output, batch_size)


class ImageEncoder:
    """Turns images into features, on all devices of this process.

    Attributes:
      config: of the run that made it.
      output: 'backbone' or 'head'.
      dim: F, length of a feature.
      source: what it was read from.
    """

    def __init__(self, read: pretrained.Pretrained, output: str, batch_size: int):
        """Puts the parameters on the devices; see `load`."""
        if output == "head" and not read.has_head:
            raise ValueError(f"{read.source} has no head; allowed: output='backbone'")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        # Each of several processes may have images of its own.
        self._layout = make_layout(jax.local_devices())
        self.config, self.output, self.source = read.config, output, read.source
        self._batch_size = batch_size
        self._encode = make_encode(read.config, read.encoder, output, self._layout)
        self._variables = self._layout.put(read.variables, self._layout.replicated)
        self.dim = self._length()

    def __repr__(self) -> str:
        model, data = self.config.model, self.config.data
        return (
            f"<ImageEncoder {model.name} of {self.source}: images -> {self.output} "
            f"f32[N, {self.dim}], {data.image_size} of {data.eval_resize} pixels>"
        )

    def __call__(self, images: np.ndarray | Iterable[ImageLike]) -> np.ndarray:
        """Returns the features of images of any sizes, f32[N, F], in their order.

        They are prepared as in evaluation: the shorter side resized, the central square taken,
        normalised. Compiled once for each number of images up to the batch size (rounded up to a
        power of 2) and each power of 2 that an image's longer side has.

        Args:
          images: uint8[N, H, W, 3], or any number of: paths, the bytes of image files, PIL
            images, uint8 arrays [H, W, 3], [H, W, 1] or [H, W].

        Raises:
          ValueError: for what is no image; it says which one, and why.
          OSError: for a path that can't be read.
        """
        numbered = enumerate(_checked(images))

        def dispatched(pool: ThreadPoolExecutor) -> Iterator[tuple[int, jax.Array]]:
            rows = 0
            while some := list(itertools.islice(numbered, self._batch_size)):
                decoded = list(pool.map(lambda item: self._decode(*item), some))
                rows = rows or self._rows(len(decoded))  # the last batch has the length of the rest
                yield len(decoded), self._encode_batch(decoded, rows)

        with ThreadPoolExecutor(loader.threads(self.config.data)) as pool:
            parts = list(itertools.starmap(_on_host, pipelined(dispatched(pool))))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _encode_batch(self, decoded: list[np.ndarray], rows: int) -> jax.Array:
        """Returns features f32[rows, F]; what follows the images is arbitrary."""
        side = _power_of_two(max(max(image.shape[:2]) for image in decoded))
        side = max(_LEAST_CANVAS, side)
        canvases = np.zeros((rows, side, side, 3), np.uint8)
        sizes = np.ones((rows, 2), np.int32)
        for row, image in enumerate(decoded):
            sizes[row] = height, width = image.shape[:2]
            canvases[row, :height, :width] = image
        return self._encode(self._variables, *self._layout.put_batch((canvases, sizes)))

    def _decode(self, number: int, image: ImageLike) -> np.ndarray:
        """Returns an image as uint8[h, w, 3] that fits the config's canvas."""
        try:
            return decode(_contents(image), self.config.data.canvas)
        except BadImage as error:
            what = repr(str(image)) if isinstance(image, (str, os.PathLike)) else "it"
            raise ValueError(f"image {number}: {what} can't be read: {error}") from error

    def _rows(self, images: int) -> int:
        """Returns the rows of a batch: one image must not cost as much as hundreds."""
        devices = self._layout.devices
        return devices * _power_of_two(-(-images // devices))

    def _length(self) -> int:
        """Returns F, from shapes alone."""
        images = jax.ShapeDtypeStruct((self._layout.devices, 8, 8, 3), np.uint8)
        sizes = jax.ShapeDtypeStruct((self._layout.devices, 2), np.int32)
        return jax.eval_shape(self._encode, self._variables, images, sizes).shape[1]


def _checked(images: np.ndarray | Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Yields the images, unless what was given is one image or is none."""
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(f"give a list of images, got one ({type(images).__name__}): [image]")
    shape = getattr(images, "shape", None)  # of numpy's, JAX's or torch's
    if shape is not None and (len(shape) != 4 or shape[3] not in (1, 3)):
        hint = "; of one image make [image]" if len(shape) in (2, 3) else ""
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = "; move the channels last first"
        raise ValueError(
            f"the images have the shape {tuple(shape)}; allowed: [N, H, W, 3]{hint}, or a list "
            "of images"
        )
    if not isinstance(images, Iterable):
        raise ValueError(f"images must be an array or a list, got {type(images).__name__}")
    return iter(images if shape is None else np.asarray(images))


def _contents(image: ImageLike) -> np.ndarray | bytes:
    """Returns what `decode` understands."""
    if isinstance(image, (str, os.PathLike)):
        with open(os.path.expanduser(image), "rb") as file:
            return file.read()
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if isinstance(image, bytes):
        return image
    if not hasattr(image, "shape"):
        raise BadImage(
            f"got {type(image).__name__}; allowed: a path, the bytes of an image file, a PIL "
            "image or a uint8 array"
        )
    return np.asarray(image)


def _on_host(length: int, features: jax.Array) -> np.ndarray:
    return np.asarray(features, np.float32)[:length]


def _power_of_two(least: int) -> int:
    """Returns the smallest power of two that is at least this."""
    return 1 << (least - 1).bit_length()
