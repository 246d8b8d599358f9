"""Images beside draws of their views, as one image."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from moco_jax.data.augment.views import make_all, pixels
from moco_jax.data.loading.decoding import decoding_of
from moco_jax.data.loading.loader import on_canvases
from moco_jax.data.loading.reader import Reader, shallow
from moco_jax.data.sources.source import Source
from moco_jax.models import patches
from moco_jax.models.pretexts import contrasts, masks
from moco_jax.terminal import command_line, logs, progress

_GAP = 4  # pixels of white between images
_MIN_SIZE = 64  # pixels; smaller views are enlarged


def view_table(config: ConfigDict, source: Source, images: int, draws: int) -> np.ndarray:
    """Returns uint8[H, W, 3]: per image a row with the original and `draws` of each view.

    Masked views follow the whole ones. Unreadable images are skipped.

    Raises:
      ValueError: if none of the selected images can be read.
    """
    reader = Reader(source, decoding_of(config.data), max_bad_fraction=1.0)
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: 2 * images]
    readable = (image for i in chosen if (image := reader.read(int(i))) is not None)
    with progress.phase(f"reading images of {source.name}"):
        originals = list(itertools.islice(readable, images))
    if warning := shallow(reader.largest, reader.how):
        logs.warning("%s: %s", source.name, warning)
    if not originals:
        raise ValueError(f"none of the images selected from {source.name} can be read")
    if len(originals) < images:
        command_line.tell([f"{len(originals)} images (asked {images}): no more can be read"])
    sizes = np.array([image.shape[:2] for image in originals], np.int32)
    canvases = on_canvases(originals, sizes)
    size, mean, std = config.data.image_size, config.data.mean, config.data.std
    cells = [np.stack([_on_square(image, size) for image in originals])]
    views = jax.jit(make_all(config.views, size, mean, std))
    drawn = []
    with progress.bar(draws, "drawing", unit="draws", first="compiling") as bar:
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.key(config.seed), draw)
            shown = [np.asarray(pixels(v, mean, std)) for v in views(key, canvases, sizes)]
            drawn.append(_with_masked(config, shown, jax.random.fold_in(key, len(shown))))
            bar.update()
    cells += itertools.chain.from_iterable(zip(*drawn, strict=True))
    return _grid(cells)


def _with_masked(config: ConfigDict, views: list[np.ndarray], key: jax.Array) -> list[np.ndarray]:
    """Returns views uint8[N, S, S, 3] of a draw; masked ones follow those of queries."""
    found = []
    for i, view in enumerate(views):
        found += [view, _masked(config, view, key)] if i < _masked_views(config) else [view]
    return found


def _masked_views(config: ConfigDict) -> int:
    """Returns how many of the views become queries that are masked."""
    if not masks(config):
        return 0
    return len(config.views) if config.symmetric and contrasts(config) else 1


def columns(config: ConfigDict) -> list[str]:
    """Returns the names of the images of a draw."""
    masked = _masked_views(config)
    names = [
        [name] + ["masked view"] * (i < masked)
        for i, name in enumerate(("query view", "key view")[: len(config.views)])
    ]
    return list(itertools.chain.from_iterable(names))


def _masked(config: ConfigDict, images: np.ndarray, key: jax.Array) -> np.ndarray:
    """Returns images uint8[N, S, S, 3] with a random part of the patches hidden."""
    patch, mask = config.model.patch, config.mask
    side = config.data.image_size // patch
    numbers = jnp.arange(len(images))
    noise = jax.vmap(lambda i: patches.noise(key, i, side, side, mask.block))(numbers)
    ranks = jnp.argsort(jnp.argsort(noise.reshape(len(images), -1), axis=1), axis=1)
    hidden = ranks.reshape(noise.shape) >= patches.kept(mask.fraction, side**2, mask.block)
    return np.asarray(patches.hide(jnp.asarray(images), hidden, patch))


def _on_square(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the whole image on a white square, uint8[size, size, 3]."""
    square = Image.new("RGB", (size, size), "white")
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    square.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return np.asarray(square)


def _grid(columns: list[np.ndarray]) -> np.ndarray:
    """Returns columns of images uint8[N, S, S, 3] as one image; small ones are enlarged."""
    cells = np.stack(columns, axis=1)
    enlarge = -(-_MIN_SIZE // cells.shape[2])
    cells = cells.repeat(enlarge, axis=2).repeat(enlarge, axis=3)
    gap = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    return np.concatenate(
        [np.concatenate(row, axis=1) for row in np.pad(cells, gap, constant_values=255)]
    )
