"""Fine-tuning on coloured digits with all labels, 10 % or 1 % of them, and the same from scratch.

For the encoder that configs/digits.py pretrains.
Paper: none for this recipe.
Reported: nothing for this recipe.
Measured, top-1 pretrained and from scratch: all labels 96.58 and 94.08 %, 10 % of the labels 86.83
and 71.50 %, 1 % of the labels 49.83 and 11.08 % (seed 0); see benchmarks/results/digits.md.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/digits_finetune.py:full
  python -m moco_jax.main --config=configs/digits_finetune.py:10percent
  python -m moco_jax.main --config=configs/digits_finetune.py:1percent
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "full": {"label_fraction": 1.0, "epochs": 10, "evaluate_every": 2.0},
    "10percent": {"label_fraction": 0.1, "epochs": 60, "evaluate_every": 12.0},
    "1percent": {
        "label_fraction": 0.01,
        "epochs": 200,
        "evaluate_every": 40.0,
        "batch_size": 32,
    },
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
