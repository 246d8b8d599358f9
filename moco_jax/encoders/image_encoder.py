"""A pretrained encoder as a function of images: `moco_jax.load`."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from PIL import Image

from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, decoding_of
from moco_jax.data.loading.reader import shallow
from moco_jax.data.sources.regular_file import read_file
from moco_jax.encoders.features import make_encode
from moco_jax.encoders.pretrained import Pretrained, read
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.terminal import logs

_SMALLEST_CANVAS = 32  # pixels

ImageLike = np.ndarray | bytes | str | os.PathLike | Image.Image


def load(
    path: str | os.PathLike,
    *,
    output: str = "backbone",
    batch_size: int = 256,
    exif_orientation: bool = True,
) -> "ImageEncoder":
    """Returns a pretrained encoder that turns images into features.

    Args:
      path: a run's workdir, one of its checkpoints, or an encoder's .safetensors.
      output: 'backbone', the pooled features, which transfer to other tasks; or 'head', the unit
        vectors that pretraining compares.
      batch_size: images encoded at once, on all devices of this process.
      exif_orientation: whether images are turned upright by their EXIF orientation, as photos of
        phones need it. The run's own `data.exif_orientation` plays no role.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the path is not an encoder, or the encoder does not have this output.
    """
    return ImageEncoder(read(path), output, batch_size, exif_orientation=exif_orientation)


class ImageEncoder:
    """Turns images into features, on all devices of this process.

    Attributes:
      config: of the run that trained the encoder.
      output: 'backbone' or 'head'.
      dim: F, length of a feature.
      source: where the encoder was read from.
      pretrained: the encoder itself, in host memory.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        output: str,
        batch_size: int,
        *,
        exif_orientation: bool = True,
    ):
        """Puts the parameters on the devices; see `load`."""
        pretrained.check_output(output)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        # Only this process's devices: each process may encode its own images.
        self._layout = make_layout(jax.local_devices())
        self.pretrained, self.output = pretrained, output
        self.config, self.source = pretrained.config, pretrained.source
        how = decoding_of(self.config.data)
        self._how = dataclasses.replace(how, exif_orientation=exif_orientation)
        self._batch_size = batch_size
        self._checked_bits = False
        self._encode = make_encode(self.config, pretrained.encoder, output, self._layout)
        self._variables = self._layout.put(pretrained.variables, self._layout.replicated)
        images = jax.ShapeDtypeStruct((self._layout.devices, 8, 8, 3), np.uint8)
        sizes = jax.ShapeDtypeStruct((self._layout.devices, 2), np.int32)
        self.dim = jax.eval_shape(self._encode, self._variables, images, sizes).shape[1]

    def __repr__(self) -> str:
        model, data = self.config.model, self.config.data
        return (
            f"<ImageEncoder {model.name} of {self.source}: images -> {self.output} "
            f"f32[N, {self.dim}], {data.image_size} of {data.eval_resize} pixels>"
        )

    def __call__(self, images: np.ndarray | Iterable[ImageLike]) -> np.ndarray:
        """Returns the features f32[N, F] of images of any sizes, in the order of the images.

        Images are prepared as in evaluation: the shorter side is resized, the central square is
        cut out and normalised. The encoder compiles once for each number of rows and each canvas;
        both are rounded up to powers of 2.

        Args:
          images: uint8[N, H, W, 3], or an iterable of: paths, the bytes of image files, PIL
            images, uint8 arrays [H, W, 3], [H, W, 1] or [H, W].

        Raises:
          ValueError: if an item is not an image; the message has its number and the reason.
          OSError: for a path that can't be read.
        """
        numbered = enumerate(_checked(images))
        deep = [0]  # the largest values of 16-bit images

        def dispatched(pool: ThreadPoolExecutor) -> Iterator[tuple[int, jax.Array]]:
            rows, devices = 0, self._layout.devices
            while some := list(itertools.islice(numbered, self._batch_size)):
                decoded = list(pool.map(lambda item: self._decode(item[0], item[1], deep), some))
                self._check_bits(deep)
                # Few rows for few images, so that one image is cheap. All batches have these rows.
                rows = rows or devices * _power_of_two(-(-len(decoded) // devices))
                yield len(decoded), self._encode_batch(decoded, rows)

        with ThreadPoolExecutor(loader.threads(self.config.data)) as pool:
            found = pipelined(dispatched(pool))
            parts = [np.asarray(features, np.float32)[:length] for length, features in found]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _encode_batch(self, decoded: list[np.ndarray], rows: int) -> jax.Array:
        """Returns features f32[rows, F]; the rows after those of the images are padding."""
        largest = max(max(image.shape[:2]) for image in decoded)
        side = max(_SMALLEST_CANVAS, _power_of_two(largest))
        canvases = np.zeros((rows, side, side, 3), np.uint8)
        sizes = np.ones((rows, 2), np.int32)
        for row, image in enumerate(decoded):
            sizes[row] = height, width = image.shape[:2]
            canvases[row, :height, :width] = image
        return self._encode(self._variables, *self._layout.put_batch((canvases, sizes)))

    def _decode(self, number: int, image: ImageLike, deep: list[int]) -> np.ndarray:
        """Returns an image as uint8[h, w, 3], at most as large as the config's canvas.

        Appends the largest value of a 16-bit image to `deep`.
        """
        try:
            return decode(_contents(image), self._how, deep.append)
        except BadImage as error:
            path = f" ({str(image)!r})" if isinstance(image, (str, os.PathLike)) else ""
            raise ValueError(f"image {number}{path} can't be read: {error}") from error

    def _check_bits(self, deep: list[int]) -> None:
        """Logs once if the first 16-bit images seem to use fewer bits."""
        if len(deep) > 1 and not self._checked_bits:
            self._checked_bits = True
            if warning := shallow(max(deep), self._how):
                logs.warning("%s", warning)


def _checked(images: np.ndarray | Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Returns an iterator over the images; raises a ValueError for one image or a wrong shape."""
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(
            f"images must be a list or an array, got one image ({type(images).__name__}); give "
            "[image]"
        )
    shape = getattr(images, "shape", None)  # NumPy, JAX and torch arrays have it
    if shape is not None and (len(shape) != 4 or shape[3] not in (1, 3)):
        hint = "; for a single image give [image]" if len(shape) in (2, 3) else ""
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = "; move the channels to the last axis"
        raise ValueError(
            f"images must have the shape [N, H, W, 3], or be a list of images; got {tuple(shape)}"
            f"{hint}"
        )
    if not isinstance(images, Iterable):
        raise ValueError(f"images must be a list or an array, got {type(images).__name__}")
    return iter(images if shape is None else np.asarray(images))


def _contents(image: ImageLike) -> np.ndarray | bytes | Image.Image:
    """Returns an image as `decode` takes it."""
    if isinstance(image, (str, os.PathLike)):
        return read_file(os.path.expanduser(image))
    if isinstance(image, (bytes, Image.Image)):
        return image
    if not hasattr(image, "shape"):
        raise BadImage(
            f"got {type(image).__name__}; allowed: a path, the bytes of an image file, a PIL "
            "image or a uint8 array"
        )
    return np.asarray(image)


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least this number."""
    return 1 << (number - 1).bit_length()
