"""Linear evaluation on your own labelled images: `--config=configs/folder_linear.py:/path`.

The path is a folder or a tar with one folder a class; a tenth of each class is held out as the test
unless there is a `test/` or `val/`. The encoder is by default the one that configs/folder.py
pretrains on the same path. Which learning rate suits depends on the features: several are tried
side by side.

Commands:
  python -m moco_jax.main --config=configs/folder_linear.py:/path/to/images
  python -m moco_jax.main --config=configs/folder_linear.py:/path --config.cached=True
"""

import pathlib
import re

from moco_jax.supervised import config


def get_config(path: str = ""):
    if not path:
        raise ValueError("name the images: --config=configs/folder_linear.py:/path/to/images")
    c = config.linear()
    stem = re.sub(r"\W+", "_", pathlib.Path(path).expanduser().absolute().name).strip("_")
    c.name = f"folder_{stem}_linear"
    c.pretrained = f"runs/folder_{stem}"
    c.lr = (0.1, 1.0, 10.0, 30.0)
    c.data.source = "images"
    c.data.path = path
    return c
