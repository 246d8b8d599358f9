"""Fine-tuning on coloured digits with all labels, 10 % or 1 % of them, and the same from scratch.

For the encoder that configs/digits.py pretrains.
mae is for the encoder of configs/digits.py:mae, with all labels: AdamW, layer decay, trained
positions and a new norm behind the mean of the patches, as in MAE (He et al. 2021, arXiv
2111.06377). Its numbers are this project's own.
Paper: none for these recipes.
Reported: nothing for these recipes.
Measured, top-1 pretrained and from scratch: all labels 96.58 and 94.08 %, 10 % of the labels 86.83
and 71.50 %, 1 % of the labels 49.83 and 11.08 % (seed 0); see benchmarks/results/digits.md.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/digits_finetune.py:full
  python -m moco_jax.main --config=configs/digits_finetune.py:10percent
  python -m moco_jax.main --config=configs/digits_finetune.py:1percent
  python -m moco_jax.main --config=configs/digits_finetune.py:mae
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

_MAE = {
    "pretrained": "runs/digits_mae",
    "epochs": 30,
    "evaluate_every": 6.0,
    "model.pool": "mean",
    "model.positions": "learned",
    "model.drop_path": 0.0,
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
    "full": {"label_fraction": 1.0, "epochs": 10, "evaluate_every": 2.0},
    "10percent": {"label_fraction": 0.1, "epochs": 60, "evaluate_every": 12.0},
    "1percent": {
        "label_fraction": 0.01,
        "epochs": 200,
        "evaluate_every": 40.0,
        "batch_size": 32,
    },
    "mae": _MAE,
}


def get_config(variant: str = "full"):
    c = config.finetune()
    c.name = "digits_finetune"
    c.pretrained = "runs/digits"
    c.baseline = True
    c.batch_size = 64
    c.bn_groups = 1

    c.lr = 0.03
    c.head_lr = 10.0
    c.head_std = 0.01
    c.lr_batch = 64
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

    c.data.source = "digits"
    c.view = recipes.supervised(min_scale=0.5)[:1]  # without the flip
    variants.apply(c, VARIANTS, variant)
    return c
