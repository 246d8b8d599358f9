"""Shows what the network sees: `python -m moco_jax.data.preview --config=... --out=views.png`.

A row an image: the image as it is stored, then draws of the query's and of the key's view.
"""

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict
from PIL import Image

from moco_jax import command_line
from moco_jax.data.augment.views import make_view
from moco_jax.data.loading.decode import BadImage, decode
from moco_jax.data.sources.opening import open_whole
from moco_jax.data.sources.source import Source

_OUT = flags.DEFINE_string("out", "views.png", "PNG to write.")
_IMAGES = flags.DEFINE_integer("images", 6, "Images, drawn by config.seed.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 3, "Draws of each of the two views.", lower_bound=1)
_GAP = 4  # pixels of white between images
_LEAST = 64  # pixels; smaller views are enlarged for the eye


def preview(config: ConfigDict, source: Source, images: int, draws: int) -> np.ndarray:
    """Returns uint8[H, W, 3]: a row an image, the original and `draws` of each view.

    Unreadable images are left out.

    Raises:
      ValueError: if none of the images drawn can be read.
    """
    rng = np.random.default_rng(config.seed)
    originals = []
    for index in rng.permutation(len(source))[: 2 * images]:
        try:
            originals.append(decode(source.read(int(index)), config.data.canvas))
        except (BadImage, OSError) as error:
            logging.warning("left out: %s (%s)", source.names[int(index)], error)
        if len(originals) == images:
            break
    if not originals:
        raise ValueError(f"none of the images drawn from {source.name} can be read")
    sizes = np.array([image.shape[:2] for image in originals], np.int32)
    canvases = np.zeros((len(originals), *sizes.max(axis=0), 3), np.uint8)
    for canvas, image in zip(canvases, originals, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    size = config.data.image_size
    columns = [np.stack([_fitted(image, size) for image in originals])]
    for recipe_number, recipe in enumerate(config.views):
        view = jax.jit(make_view(recipe, size, (0.0,) * 3, (1.0,) * 3))
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.key(config.seed), 2 * draw + recipe_number)
            columns.append(np.rint(np.asarray(view(key, canvases, sizes)) * 255).astype(np.uint8))
    return _grid(columns)


def _fitted(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the whole image inside a white square, uint8[size, size, 3]."""
    square = Image.new("RGB", (size, size), "white")
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    square.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return np.asarray(square)


def _grid(columns: list[np.ndarray]) -> np.ndarray:
    """Returns columns of images uint8[N, S, S, 3] as one, small ones enlarged."""
    cells = np.stack(columns, axis=1)
    enlarge = -(-_LEAST // cells.shape[2])
    cells = cells.repeat(enlarge, axis=2).repeat(enlarge, axis=3)
    gap = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    cells = np.pad(cells, gap, constant_values=255)
    rows, columns_, height, width, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns_ * width, 3)


def main(_) -> None:
    config = command_line.config()
    try:
        source = open_whole(config)
        image = preview(config, source, _IMAGES.value, _DRAWS.value)
        Image.fromarray(image).save(_OUT.value, "PNG")
    except (OSError, ValueError) as error:
        command_line.fail(str(error))
    print(f"{_OUT.value}: original, {_DRAWS.value} query views, {_DRAWS.value} key views a row")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
