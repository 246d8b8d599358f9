"""MoCo v2 on scikit-learn's handwritten digits, coloured, on varied backgrounds.

Made for a first run: everything is embedded, and two CPU cores need four minutes. No paper's
recipe: small batches make many steps, the short queue holds the keys of 8 steps, as the CIFAR-10
demo's does, and views of 16x16 pixels are enough for digits that were 8x8.

Command: bash launch/local.sh --config=configs/digits.py
"""

from moco_jax import config
from moco_jax.data.augment import recipes


def get_config():
    c = config.base()
    c.name = "digits"
    c.epochs = 36
    c.batch_size = 64
    c.log_every = 50
    c.checkpoint_every = 500

    c.model.name = "resnet10"
    c.model.stem = "small"
    c.model.width = 0.25

    c.momentum = 0.99
    c.temperature = 0.2
    c.queue_size = 512

    c.lr = 0.03
    c.lr_batch = 64
    c.lr_update = "step"
    c.warmup_epochs = 1
    c.weight_decay = 5e-4

    c.data.source = "digits"
    c.data.image_size = 16
    c.data.eval_resize = 16
    c.data.mean = (0.5, 0.5, 0.5)
    c.data.std = (0.25, 0.25, 0.25)
    c.knn.every_epochs = 6

    crop, _, jitter, grayscale = recipes.cifar(min_scale=0.5)
    # No flip: a mirrored digit is another sign. Any hue: colour says nothing about a digit.
    view = (crop, jitter | {"hue": 0.5}, grayscale)
    c.views = (view, view)
    return c
