"""Random masks of patches, functions of seed, step and image (He et al. 2021, sec. 3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.models.patches import kept, noise
from moco_jax.parallel.mesh import Layout

# (the step, the number of its view) -> i32[B, L], patches in random order, the visible ones first
DrawOrder = Callable[[StepIndices, int], jax.Array]


def make_draw_order(config: ConfigDict, layout: Layout) -> DrawOrder:
    """Returns the function that draws the order of the patches of a step's images."""
    side = config.data.image_size // config.model.patch

    def draw_order(batch: StepIndices, view: int) -> jax.Array:
        found = draw(config, side, side, batch, view)
        return layout.shard(jnp.argsort(found.reshape(len(found), -1), axis=1))

    return draw_order


def draw(
    config: ConfigDict, rows: int, columns: int, batch: StepIndices, view: int = 0
) -> jax.Array:
    """Returns the noise f32[B, rows, columns] of the images of a step, see `patches.noise`."""
    # Key 0 of the root draws the weights, key 1 the views, key 2 the negatives of a bank.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), batch.step)
    key = jax.random.fold_in(key, view)
    return jax.vmap(lambda image: noise(key, image, rows, columns, config.mask.block))(
        batch.indices
    )


def patches(config: ConfigDict) -> int:
    """Returns L, the patches of an image."""
    return (config.data.image_size // config.model.patch) ** 2


def visible(config: ConfigDict) -> int:
    """Returns how many patches of an image a masked encoder sees."""
    return kept(config.mask.fraction, patches(config), config.mask.block)
