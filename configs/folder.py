"""MoCo v2 on your own images, for smaller sets: `--config=configs/folder.py:/path/to/images`.

Paper: Chen et al. 2020, arXiv 2003.04297, changed for smaller sets: 4096 keys in the queue, m = .99
and a warm-up. A queue longer than the data set would hold the query's own key as a negative.
Below a few thousand images, raise --config.epochs until the run has at least 20,000 steps.
Reported: nothing.
Measured: not run here to its end.
Wall time: not measured.

The path is a folder or a tar of JPEG, PNG or WebP files. With one folder a class (`train/cat/1.jpg`
or `cat/1.jpg`) the kNN monitor uses `test/` or `val/`, or else a tenth that is held out. A flat
folder works too because pretraining needs no labels.

Command:
  python -m moco_jax.main --config=configs/folder.py:/path/to/images
"""

import pathlib
import re

from moco_jax import config
from moco_jax.data.augment import recipes


def get_config(path: str = ""):
    if not path:
        raise ValueError("name the images: --config=configs/folder.py:/path/to/images")
    c = config.base()
    stem = re.sub(r"\W+", "_", pathlib.Path(path).expanduser().absolute().name).strip("_")
    c.name = f"folder_{stem}"
    c.epochs = 200
    c.batch_size = 256

    c.model.name = "resnet50"
    c.model.stem = "imagenet"
    c.model.stem_init = "fan_out"
    c.model.width = 1.0
    c.model.head = "mlp"
    c.model.hidden = 0  # 2048, the number of features
    c.model.dim = 128

    c.dictionary = "queue"
    c.key_encoder = "momentum"
    c.momentum = 0.99
    c.temperature = 0.2
    c.queue_size = 4096
    c.symmetric = False
    c.bn_groups = 8
    c.shuffle_bn = True

    c.lr = 0.03
    c.lr_batch = 256
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.warmup_epochs = 5
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-4

    c.data.source = "images"
    c.data.path = path
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.views = (recipes.v2(), recipes.v2())
    return c
