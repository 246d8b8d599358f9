"""Fine-tuning on ImageNet-1k with all labels, a tenth or a hundredth of them.

The semi-supervised sets are drawn class by class. SimCLR's published lists, which name an image a
line, are used when given: --config.label_list=1percent.txt --config.label_fraction=1. No paper's
recipe (Chen et al. 2020, arXiv 2002.05709, is what the sets are known from); not run here.

Commands:
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:10percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:full
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent --config.baseline=True
"""

from moco_jax.supervised import config

# variant: fraction of the labels, epochs
VARIANTS = {"full": (1.0, 30), "10percent": (0.1, 30), "1percent": (0.01, 60)}


def get_config(variant: str = "full"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/imagenet_finetune.py:{variant}: known: {', '.join(VARIANTS)}")
    c = config.finetune()
    c.name = f"imagenet_finetune_{variant}"
    c.pretrained = "runs/imagenet_v2"
    c.label_fraction, c.epochs = VARIANTS[variant]
    c.data.source = "tfds:imagenet2012"
    c.data.image_size = 224
    c.data.eval_resize = 256
    return c
