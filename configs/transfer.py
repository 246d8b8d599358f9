"""Fine-tuning on CIFAR-10, CIFAR-100, Flowers and Pets of an encoder from another data set.

Paper: MoCo v3 (Chen et al. 2021, arXiv 2104.02057) reports transfer to these sets. The recipe is
this project's own, so the numbers are not comparable.
Reported by facebookresearch/moco-v3 for ViT-B: CIFAR-10 98.9 %, CIFAR-100 90.5 %, Flowers 97.7 %,
Pets 93.2 %.
Measured: not run here.
Wall time: not measured.

Images are resized to the encoder's size. The sets come from TFDS and are prepared first:
  python -m moco_jax.data.prepare --name=oxford_flowers102

Commands:
  python -m moco_jax.main --config=configs/transfer.py:cifar10 --config.pretrained=r50.safetensors
  python -m moco_jax.main --config=configs/transfer.py:cifar100 --config.baseline=True
  python -m moco_jax.main --config=configs/transfer.py:flowers
  python -m moco_jax.main --config=configs/transfer.py:pets
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "cifar10": {"data.source": "tfds:cifar10"},
    "cifar100": {"data.source": "tfds:cifar100"},
    "flowers": {"data.source": "tfds:oxford_flowers102"},
    "pets": {"data.source": "tfds:oxford_iiit_pet"},
}


def get_config(variant: str = "cifar10"):
    c = config.finetune()
    c.name = "transfer"
    c.pretrained = "runs/imagenet_v2"
    c.epochs = 100
    c.evaluate_every = 10.0
    c.batch_size = 256
    c.bn_groups = 8

    c.lr = 0.03
    c.head_lr = 10.0
    c.head_std = 0.01
    c.lr_batch = 256
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-5
    c.decay_all = True
    c.min_lr = 0.0
    c.layer_decay = 1.0
    c.optimizer = "sgd"
    c.label_smoothing = 0.0
    c.mixup = 0.0
    c.cutmix = 0.0
    c.ema = 0.0

    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
