"""Fine-tuning on CIFAR-10 with all labels, 10 % or 1 % of them, and the same from scratch.

For the encoder that configs/cifar10.py pretrains.
mae is for the encoder of configs/cifar10.py:mae, with all labels: AdamW, layer decay, trained
positions and a new norm behind the mean of the patches, as in MAE (He et al. 2021, arXiv
2111.06377). Its numbers are this project's own.
Paper: none for these recipes.
Reported: nothing for these recipes.
Measured: not run here to its end. Shorter runs of a ResNet-10 of width 1/4, pretrained for 4
epochs, gain 3.6 to 4.9 points over training from scratch; see benchmarks/results/cifar10.md.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/cifar10_finetune.py:full \\
    --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10_finetune.py:10percent
  python -m moco_jax.main --config=configs/cifar10_finetune.py:1percent
  python -m moco_jax.main --config=configs/cifar10_finetune.py:mae
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

_MAE = {
    "pretrained": "runs/cifar10_mae",
    "epochs": 100,
    "evaluate_every": 10.0,
    "model.pool": "mean",
    "model.positions": "learned",
    "model.drop_path": 0.1,
    "fresh_norm": True,
    "bn_groups": 1,
    "lr": 1e-3,
    "head_lr": 1.0,
    "head_std": 2e-5,
    "warmup_epochs": 5.0,
    "optimizer": "adamw",
    "adam_b1": 0.9,
    "adam_b2": 0.999,
    "adam_eps": 1e-8,
    "weight_decay": 0.05,
    "decay_all": False,
    "layer_decay": 0.75,
    "label_smoothing": 0.1,
}
VARIANTS = {
    "full": {"label_fraction": 1.0, "epochs": 50, "evaluate_every": 5.0},
    "10percent": {"label_fraction": 0.1, "epochs": 200, "evaluate_every": 20.0},
    "1percent": {"label_fraction": 0.01, "epochs": 500, "evaluate_every": 50.0},
    "mae": _MAE,
}


def get_config(variant: str = "full"):
    c = config.finetune()
    c.name = "cifar10_finetune"
    c.pretrained = "runs/cifar10_asymmetric"
    c.baseline = True
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

    c.data.source = "tfds:cifar10"
    c.data.exif_orientation = False  # as the reference decodes
    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
