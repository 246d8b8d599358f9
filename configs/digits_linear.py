"""Linear evaluation of an encoder on coloured digits, frozen: a classifier on its features.

For the encoder that configs/digits.py pretrains. No paper's recipe: the rate suits features of
that network, and crops are as mild as in its pretraining, without a flip.

Commands:
  python -m moco_jax.main --config=configs/digits_linear.py
  python -m moco_jax.main --config=configs/digits_linear.py --config.baseline=True
  python -m moco_jax.main --config=configs/digits_linear.py --config.lr=0.1,1,10,30
  python -m moco_jax.main --config=configs/digits_linear.py --config.cached=True
"""

from moco_jax.data.augment import recipes
from moco_jax.supervised import config


def get_config():
    c = config.linear()
    c.name = "digits_linear"
    c.pretrained = "runs/digits"
    c.epochs = 20
    c.evaluate_every = 5.0
    c.batch_size = 64
    c.lr_batch = 64
    c.lr = (1.0,)
    c.data.source = "digits"
    c.view = recipes.supervised(min_scale=0.5)[:1]
    return c
