"""Linear evaluation on CIFAR-10 of the encoder that configs/cifar10.py pretrains.

Paper: He et al. 2019, arXiv 1911.05722. This is its ImageNet protocol with crops of 32 pixels.
mae is for the encoder of configs/cifar10.py:mae: features after a batch norm, as in MAE (He et al.
2021, arXiv 2111.06377), and SGD with three rates, because LARS suits batches of thousands.
Reported: 90.7 % by the demo notebook of facebookresearch/moco, for its symmetric model of 800
epochs. The notebook does not give the recipe of that evaluation.
Measured: 77.13 % for configs/cifar10.py after 200 epochs on a lossy JPEG copy, 74.55 % with
`cached`; see benchmarks/results/cifar10.md.
Wall time: 1:32 on one H100.

Commands:
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.lr=0.1,1,10,30
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.cached=True
  python -m moco_jax.main --config=configs/cifar10_linear.py:mae
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "mae": {
        "pretrained": "runs/cifar10_mae",
        "lr": (0.01, 0.1, 1.0),
        "feature_norm": True,
        "bn_groups": 1,
    },
}


def get_config(variant: str = ""):
    c = config.linear()
    c.name = "cifar10_linear"
    c.pretrained = "runs/cifar10_asymmetric"
    c.epochs = 100
    c.batch_size = 256

    c.lr = (30.0,)
    c.lr_batch = 256
    c.lr_schedule = "step"
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)
    c.warmup_epochs = 0.0
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    c.feature_norm = False
    c.l2 = (1e-4,)  # with cached=True

    c.data.source = "tfds:cifar10"
    c.data.exif_orientation = False  # as the reference decodes
    c.view = recipes.supervised()
    if variant:
        variants.apply(c, VARIANTS, variant)
    return c
