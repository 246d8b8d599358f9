"""Fine-tuning on ImageNet-1k with all labels, 10 % or 1 % of them.

Paper: none for this recipe. The sets are those of Chen et al. 2020, arXiv 2002.05709 (SimCLR). They
are drawn class by class. SimCLR's published lists, which name one image a line, are used with
--config.label_list=1percent.txt --config.label_fraction=1.
Reported: nothing for this recipe.
Measured: not run here.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/imagenet_finetune.py:full
  python -m moco_jax.main --config=configs/imagenet_finetune.py:10percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent --config.baseline=True
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "full": {"label_fraction": 1.0, "epochs": 30},
    "10percent": {"label_fraction": 0.1, "epochs": 30},
    "1percent": {"label_fraction": 0.01, "epochs": 60},
}


def get_config(variant: str = "full"):
    c = config.finetune()
    c.name = "imagenet_finetune"
    c.pretrained = "runs/imagenet_v2"
    c.batch_size = 256
    c.bn_groups = 8

    c.lr = 0.03
    c.head_lr = 10.0
    c.lr_batch = 256
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-5
    c.label_smoothing = 0.0
    c.mixup = 0.0
    c.cutmix = 0.0
    c.ema = 0.0

    c.data.source = "tfds:imagenet2012"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
