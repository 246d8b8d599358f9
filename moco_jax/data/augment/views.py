"""Functions that turn a canvas of uint8 images into normalised views, made from recipes.

They are pure and meant to run inside `jax.jit` on the accelerator. What happens to image i
depends on the key and on i alone, never on how the batch is spread over devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from moco_jax.data.augment import crop
from moco_jax.data.augment import photometric as augment
from moco_jax.data.augment.recipes import Recipe, check_recipe
from moco_jax.data.augment.resampling import to_images
from moco_jax.parallel.mesh import Layout


def make_view(
    recipe: Recipe,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Makes the function that draws one view of each image.

    Op n of the recipe draws from `fold_in(key, n)`, so an op added at the end leaves what the
    earlier ones draw as it is.

    Args:
      recipe: a sequence of mappings, such as `recipes.v2()`; dicts or `ConfigDict`s.
      image_size: S, side of the view in pixels.
      mean: of each channel, for values in 0..1.
      std: likewise.
      dtype: of the view.

    Returns:
      A function of (key, images uint8[B, H, W, 3], sizes i32[B, 2]) that returns the views,
      dtype[B, S, S, 3]. Image i fills the top left `sizes[i]` (height, width) of its canvas.

    Raises:
      ValueError: with every problem of the recipe.
    """
    problems = check_recipe(recipe)
    if problems:
        raise ValueError("The recipe of a view is wrong:\n  " + "\n  ".join(problems))
    # Copied now: a later change of the config must not reach a function that is already compiled.
    names = [step["op"] for step in recipe]
    parameters = [{k: v for k, v in step.items() if k != "op"} for step in recipe]

    def view(key: jax.Array, images: jax.Array, sizes: jax.Array) -> jax.Array:
        windows = crop.random_windows(jax.random.fold_in(key, 0), sizes, **parameters[0])
        planes = crop.crop_resize(images, windows, image_size)
        for position in range(1, len(names)):
            op = augment.OPS[names[position]]
            planes = op(jax.random.fold_in(key, position), planes, **parameters[position])
        return normalize(to_images(planes), mean, std, dtype)

    return view


def make_views(
    config: ConfigDict, layout: Layout
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Makes the function that draws the views of a step's images, one for each recipe.

    They follow from the seed and the step alone, so a past step's can be drawn again.

    Args:
      config: of the run.
      layout: where arrays lie.

    Returns:
      A function of (step i32[], images uint8[B, H, W, 3], sizes i32[B, 2]).
    """
    data = config.data
    make = [
        make_view(recipe, data.image_size, data.mean, data.std, jnp.dtype(config.dtype))
        for recipe in config.views
    ]

    def views(step, images, sizes):
        # Key 0 of the root made the weights; the steps' keys come from key 1. A key for each view:
        # by the same one XLA would draw two views of one recipe but once.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)
        return tuple(
            layout.shard(view(jax.random.fold_in(key, i), images, sizes))
            for i, view in enumerate(make)
        )

    return views


def evaluation_view(
    image_size: int,
    resize: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the function that resizes the shorter side to `resize` and takes the central square.

    Args:
      image_size: S, side of the central square in pixels.
      resize: length of the shorter side before that crop, in pixels; at least `image_size`.
      mean: of each channel, for values in 0..1.
      std: likewise.
      dtype: of the result.

    Returns:
      A function of (images uint8[B, H, W, 3], sizes i32[B, 2]) that returns dtype[B, S, S, 3].

    Raises:
      ValueError: if `resize` is smaller than `image_size`.
    """
    if resize < image_size:
        raise ValueError(f"resize must be at least image_size={image_size}, got {resize}")

    def view(images: jax.Array, sizes: jax.Array) -> jax.Array:
        windows = crop.center_windows(sizes, resize=resize, crop=image_size)
        planes = crop.crop_resize(images, windows, image_size, bounds=crop.image_bounds(sizes))
        return normalize(to_images(planes), mean, std, dtype)

    return view


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Returns dtype[B, S, S, 3], (images / 255 - mean) / std of levels uint8[B, S, S, 3]."""
    center = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    spread = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return ((images.astype(jnp.float32) / 255.0 - center) / spread).astype(dtype)
