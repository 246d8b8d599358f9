"""Linear evaluation on your own labelled images: `--config=configs/folder_linear.py:/path`.

Paper: He et al. 2019, arXiv 1911.05722, sec. 4.1. The recipe is its ImageNet protocol, with four
learning rates side by side because the best one depends on the features.
Reported: nothing.
Measured: not run here to its end.
Wall time: not measured.

The path is a folder or a tar with one folder a class. The test images are `test/` or `val/`, or
else a tenth of each class that is held out. By default the encoder is the one that
configs/folder.py pretrains on the same path. The batch fits the number of images.

`,small` after the path takes the encoder of configs/folder.py with `,small`.

Commands:
  python -m moco_jax.main --config=configs/folder_linear.py:/path/to/images
  python -m moco_jax.main --config=configs/folder_linear.py:/path/to/images --config.cached=True
"""

from moco_jax import variants
from moco_jax.config import leave_to_data
from moco_jax.data.augment import recipes
from moco_jax.supervised import config


def get_config(path: str = ""):
    path, variant = variants.of_path(path, ["small"])
    if not path:
        raise ValueError("name the images: --config=configs/folder_linear.py:/path/to/images")
    c = config.linear()
    name = "_".join(filter(None, ("folder", variants.name_of(path), variant)))
    c.name = f"{name}_linear"
    c.pretrained = f"runs/{name}"
    c.epochs = 100

    c.lr = (0.1, 1.0, 10.0, 30.0)
    c.lr_batch = 256
    c.lr_schedule = "step"
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)
    c.warmup_epochs = 0.0
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    c.feature_norm = False
    c.l2 = (1e-4,)  # with cached=True

    c.data.source = "images"
    c.data.path = path
    c.view = recipes.supervised()
    leave_to_data(c, ["batch_size"])
    return c
