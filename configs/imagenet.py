"""MoCo v1 and v2 on ImageNet-1k, ResNet-50, 200 epochs.

v1: He et al. 2019 (arXiv 1911.05722); linear top-1 60.8 +- .2 reported by facebookresearch/moco.
v2: Chen et al. 2020 (arXiv 2003.04297); linear top-1 67.5 +- .1 (71.1 at 800 epochs), likewise.
There, 200 epochs take 53 h on 8 V100. bn_groups=8 are those 8 GPUs' batch-norm groups of 32
images, on any number of devices here.

Pictures: a folder or tar with train/<class>/*.JPEG (and val/<class>/ for the kNN monitor), named by
--config.data.path, or TFDS's imagenet2012 prepared as array_record.

Commands:
  python -m moco_jax.main --config=configs/imagenet.py --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet.py:v1 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet.py --config.epochs=800
"""

from moco_jax import config
from moco_jax.data import recipes

VARIANTS = ("v1", "v2")


def get_config(variant: str = "v2"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/imagenet.py:{variant} is unknown; known: {', '.join(VARIANTS)}")
    c = config.base()  # which is v2's recipe
    c.name = f"imagenet_{variant}"
    c.epochs = 200
    c.data.source = "tfds:imagenet2012"
    if variant == "v1":
        c.model.head = "linear"
        c.temperature = 0.07
        c.lr_schedule = "step"  # x .1 at epochs 120 and 160
        c.views = (recipes.v1(), recipes.v1())
    return c
