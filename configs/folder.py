"""MoCo v2 on your own images: `--config=configs/folder.py:/path/to/images`.

The path is a folder or a tar of JPEG, PNG or WebP files. With one folder a class
(`train/cat/1.jpg` or `cat/1.jpg`) a tenth is held out for the kNN monitor, unless there is a
`test/` or `val/`; flat folders work as well, since pretraining needs no labels.

The recipe is MoCo v2's with what smaller sets need: a queue of 4096 keys (one longer than the data
are many would hold a query's own key among the negatives), a faster key encoder (m = .99) and a
warm-up. Below some thousand images, raise --config.epochs until there are 20,000 steps or more.

Command: python -m moco_jax.main --config=configs/folder.py:/path/to/images
"""

import pathlib
import re

from moco_jax import config


def get_config(path: str = ""):
    if not path:
        raise ValueError("name the images: --config=configs/folder.py:/path/to/images")
    c = config.base()
    stem = re.sub(r"\W+", "_", pathlib.Path(path).expanduser().absolute().name).strip("_")
    c.name = f"folder_{stem}"
    c.epochs = 200
    c.data.source = "images"
    c.data.path = path
    c.queue_size = 4096
    c.momentum = 0.99
    c.lr_update = "step"
    c.warmup_epochs = 5
    return c
