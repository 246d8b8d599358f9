"""The linear protocol of MoCo on ImageNet-1k: a classifier on the frozen, pooled features.

He et al. 2019 (arXiv 1911.05722), sec. 4.1; facebookresearch/moco, `main_lincls.py`: 100 epochs of
SGD with batches of 256, lr 30 without weight decay, x .1 at epochs 60 and 80, random crops and
flips; tested on the central 224 of 256 pixels. It reports top-1 60.8 +- .2 for v1 and 67.5 +- .1
for v2 at 200 epochs, and keeps the best of its evaluations without saying which it reports; here
last and best are both told. Not run here to its end.

The recipe is one for v1 and v2; which one names the encoder of configs/imagenet.py:v1 or :v2.

Commands:
  python -m moco_jax.main --config=configs/imagenet_linear.py --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py:v1 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py --config.pretrained=r50.safetensors
  python -m moco_jax.main --config=configs/imagenet_linear.py --config.lr=0.1,1,10,30
"""

from moco_jax.supervised import config

VARIANTS = ("v1", "v2")


def get_config(variant: str = "v2"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/imagenet_linear.py:{variant}: known: {', '.join(VARIANTS)}")
    c = config.linear()  # which is this recipe
    c.name = f"imagenet_linear_{variant}"
    c.pretrained = f"runs/imagenet_{variant}"
    c.data.source = "tfds:imagenet2012"
    c.data.image_size = 224
    c.data.eval_resize = 256
    return c
