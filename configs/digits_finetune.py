"""Fine-tuning on coloured digits, with all labels, a tenth or a hundredth of them.

For the encoder that configs/digits.py pretrains; beside it the same network is trained from
scratch in the same way, and the gain is told. No paper's recipe.

Commands:
  python -m moco_jax.main --config=configs/digits_finetune.py
  python -m moco_jax.main --config=configs/digits_finetune.py:10percent
  python -m moco_jax.main --config=configs/digits_finetune.py:1percent
"""

from moco_jax.data.augment import recipes
from moco_jax.supervised import config

# variant: fraction of the labels, epochs, batch
VARIANTS = {"full": (1.0, 10, 64), "10percent": (0.1, 60, 64), "1percent": (0.01, 200, 32)}


def get_config(variant: str = "full"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/digits_finetune.py:{variant}: known: {', '.join(VARIANTS)}")
    c = config.finetune()
    c.name = f"digits_finetune_{variant}"
    c.pretrained = "runs/digits"
    c.baseline = True
    c.label_fraction, c.epochs, c.batch_size = VARIANTS[variant]
    c.evaluate_every = c.epochs / 5
    c.lr_batch = 64
    c.bn_groups = 1
    c.data.source = "digits"
    c.view = recipes.supervised(min_scale=0.5)[:1]
    return c
