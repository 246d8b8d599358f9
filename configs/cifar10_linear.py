"""Linear evaluation on CIFAR-10 of the encoder that configs/cifar10.py pretrains.

The demo notebook of facebookresearch/moco reports 90.7 % for its symmetric model of 800 epochs,
without its recipe; this is the ImageNet protocol with crops of 32 pixels. Not run here to its end.

Commands:
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.lr=0.1,1,10,30
  python -m moco_jax.main --config=configs/cifar10_linear.py --config.cached=True
"""

from moco_jax.supervised import config


def get_config():
    c = config.linear()
    c.name = "cifar10_linear"
    c.pretrained = "runs/cifar10_asymmetric"
    c.data.source = "tfds:cifar10"
    return c
