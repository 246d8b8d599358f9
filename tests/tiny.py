"""A config small enough to compile and run in seconds, and images for it."""

import numpy as np
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.data.augment import recipes
from moco_jax.data.sources.source import Sources, array_source


def tiny_config(**changes) -> ConfigDict:
    """Returns a config of 10 steps on 8x8 images; `changes` by key, nested as `model__width=1`."""
    c = config_lib.base()
    c.update_from_flattened_dict(
        {
            "name": "tiny",
            "steps": 10,
            "batch_size": 32,
            "log_every": 1,
            "log_views": False,
            "checkpoint_every": 4,
            "model.name": "resnet10",
            "model.stem": "small",
            "model.width": 0.125,
            "model.dim": 16,
            "momentum": 0.9,
            "queue_size": 128,
            "lr_batch": 32,
            "lr_schedule": "constant",  # a shorter run is the beginning of a longer one
            "data.source": "digits",
            "data.image_size": 8,
            "data.eval_resize": 8,
            "knn.k": 5,
            "drift": False,
            "health.images": 0,
            "health.probe": False,
        }
    )
    c.views = (recipes.cifar(), recipes.cifar())
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def tiny_sources(images: int = 96, seed: int = 0) -> Sources:
    """Returns labelled noise of 10x12 pixels in 4 classes with different colours."""
    rng = np.random.default_rng(seed)

    def make(n):
        labels = rng.integers(0, 4, n)
        tint = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [150, 150, 20]])[labels]
        pixels = tint[:, None, None] + rng.integers(-40, 40, (n, 10, 12, 3))
        return array_source(np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Sources(make(images), make(32))
