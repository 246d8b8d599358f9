"""MoCo v2 on scikit-learn's handwritten digits, coloured, on varied backgrounds, at 32x32.

Made for a first run: everything is embedded, two CPU cores need a few minutes. No paper's recipe.

Command: bash launch/local.sh --config=configs/digits.py
"""

from moco_jax import config
from moco_jax.data import recipes


def get_config():
    c = config.base()
    c.name = "digits"
    c.epochs = 20
    c.batch_size = 256
    c.log_every = 10
    c.checkpoint_every = 100

    c.model.name = "resnet10"
    c.model.stem = "small"
    c.model.width = 0.25

    c.momentum = 0.99
    c.temperature = 0.1
    c.queue_size = 4096

    c.lr = 0.06
    c.lr_update = "step"
    c.warmup_epochs = 1
    c.weight_decay = 5e-4

    c.data.source = "digits"
    c.data.image_size = 32
    c.data.eval_resize = 32
    c.data.mean = (0.5, 0.5, 0.5)
    c.data.std = (0.25, 0.25, 0.25)
    # No flip: a mirrored digit is another sign.
    view = (
        recipes.cifar(min_scale=0.4)[0],
        {
            "op": "color_jitter",
            "brightness": 0.8,
            "contrast": 0.8,
            "saturation": 0.8,
            "hue": 0.5,
            "p": 0.9,
        },
        {"op": "grayscale", "p": 0.3},
    )
    c.views = (view, view)
    return c
