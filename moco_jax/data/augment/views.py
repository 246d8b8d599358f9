"""Makes functions that turn canvases of uint8 images into normalised views.

The functions are pure and run inside `jax.jit` on the accelerator. A view of image i depends on the
key and on i only, never on how the batch is sharded over devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from moco_jax.data.augment import crop, erasing, photometric
from moco_jax.data.augment.recipe_checks import check_recipe
from moco_jax.data.augment.recipes import ERASE, Recipe
from moco_jax.data.augment.resampling import to_images
from moco_jax.parallel.mesh import Layout


def make_view(
    recipe: Recipe,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns a function that draws one view of each image.

    Op n of the recipe uses the key `fold_in(key, n)`, so an op added at the end does not change the
    draws of earlier ones.

    Args:
      recipe: a sequence of mappings (dicts or `ConfigDict`s), such as `recipes.v2()`.
      image_size: S, side of the view in pixels.
      mean, std: one value per channel, for pixels in 0..1.
      dtype: of the view.

    Returns:
      A function (key, images uint8[B, H, W, 3], sizes i32[B, 2]) -> views dtype[B, S, S, 3].
      Image i fills the top left `sizes[i]` (height, width) of its canvas.

    Raises:
      ValueError: if the recipe is not valid; the message lists all problems.
    """
    draw = _drawing(recipe, (), image_size, mean, std, dtype)
    return lambda key, images, sizes: draw(key, key, images, sizes)


def make_all(
    recipes: Sequence[Recipe],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Returns a function that draws one view for each recipe; arguments as in `make_view`.

    View i uses the key `fold_in(key, i)`: with the same key, two views of one recipe would be
    equal. Only the crop of a view `of_view` uses the key of that other view.
    """
    draws = [
        _drawing(recipe, recipes[:i], image_size, mean, std, dtype)
        for i, recipe in enumerate(recipes)
    ]
    owners = [recipe[0].get("of_view", i) for i, recipe in enumerate(recipes)]

    def views(key: jax.Array, images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        keys = [jax.random.fold_in(key, i) for i in range(len(draws))]
        return tuple(
            draw(keys[i], keys[owner], images, sizes)
            for i, (draw, owner) in enumerate(zip(draws, owners, strict=True))
        )

    return views


def _drawing(
    recipe: Recipe,
    earlier: Sequence[Recipe],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns the function of `make_view` with a second key: of the view whose crop is taken."""
    problems = check_recipe(recipe, earlier)
    if problems:
        raise ValueError("the recipe of a view is not valid:\n  " + "\n  ".join(problems))
    # Copy now: a later change of the config must not affect a compiled function.
    names = [step["op"] for step in recipe]
    parameters = [{k: v for k, v in step.items() if k != "op"} for step in recipe]
    for name, values in zip(names, parameters, strict=True):
        if name == "rand_augment":
            values["fill"] = tuple(round(255 * value) for value in mean)
    erased = parameters.pop() if names[-1] == ERASE else None
    cut = parameters[0]
    if "of_view" in cut:
        owner = earlier[cut["of_view"]][0]
        cut = {k: v for k, v in owner.items() if k != "op"} | {"shift": cut.get("shift", 0)}

    def view(
        key: jax.Array, owner_key: jax.Array, images: jax.Array, sizes: jax.Array
    ) -> jax.Array:
        crop_key, shift_key = (jax.random.fold_in(k, 0) for k in (owner_key, key))
        planes = crop.random_crops(crop_key, shift_key, images, sizes, image_size, **cut)
        for position in range(1, len(parameters)):
            op = photometric.OPS[names[position]]
            planes = op(jax.random.fold_in(key, position), planes, **parameters[position])
        images = normalize(to_images(planes), mean, std, dtype)
        if erased is not None:
            images = erasing.erase(jax.random.fold_in(key, len(parameters)), images, **erased)
        return images

    return view


def make_views(
    config: ConfigDict, layout: Layout
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Returns a function that draws the views of a step, one per recipe in `config.views`.

    The views depend on the seed, the step and the images only, so those of a past step can be drawn
    again.

    Returns:
      A function (step i32[], images uint8[B, H, W, 3], sizes i32[B, 2]) -> tuple of views
      dtype[B, S, S, 3].
    """
    data = config.data
    draw = make_all(config.views, data.image_size, data.mean, data.std, jnp.dtype(config.dtype))

    def views(step, images, sizes):
        # Key 0 of the root initializes the weights, and key 1 is for the steps.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)
        return tuple(map(layout.shard, draw(key, images, sizes)))

    return views


def evaluation_view(
    image_size: int,
    resize: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns a function that resizes the shorter side to `resize` and crops the central square.

    Args:
      image_size: S, side of the central square in pixels.
      resize: length of the shorter side before the crop, in pixels.
      mean, std: one value per channel, for pixels in 0..1.
      dtype: of the result.

    Returns:
      A function (images uint8[B, H, W, 3], sizes i32[B, 2]) -> dtype[B, S, S, 3].

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
    """Returns (images / 255 - mean) / std as dtype[B, S, S, 3], from uint8[B, S, S, 3]."""
    center = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    spread = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return ((images.astype(jnp.float32) / 255.0 - center) / spread).astype(dtype)


def pixels(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns normalised images [..., 3] as levels uint8[..., 3], clipped to 0..255."""
    axes = (1,) * (images.ndim - 1)
    center, spread = (jnp.asarray(x, jnp.float32).reshape(*axes, 3) for x in (mean, std))
    return (jnp.clip(images * spread + center, 0, 1) * 255).round().astype(jnp.uint8)
