"""Linear protocol of MoCo on ImageNet-1k: a classifier on the frozen, pooled features.

Paper: He et al. 2019, arXiv 1911.05722, sec. 4.1; facebookresearch/moco, `main_lincls.py`. 100
epochs of SGD with batches of 256, lr 30, no weight decay, x .1 at epochs 60 and 80, random crops
and flips. The test uses the central 224 of 256 pixels. One recipe serves v1 and v2; the variant
names the encoder, which configs/imagenet.py pretrains.
Reported: top-1 60.8 +- .2 % (v1) and 67.5 +- .1 % (v2) after 200 epochs of pretraining. The
reference keeps its best evaluation and does not say whether it reports the best or the last. This
package prints both.
Measured: not run here to its end.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py:v1 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 \\
    --config.pretrained=r50.safetensors
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 --config.lr=0.1,1,10,30
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

VARIANTS = {
    "v1": {"pretrained": "runs/imagenet_v1"},
    "v2": {"pretrained": "runs/imagenet_v2"},
}


def get_config(variant: str = "v2"):
    c = config.linear()
    c.name = "imagenet_linear"
    c.epochs = 100
    c.batch_size = 256

    c.lr = (30.0,)
    c.lr_batch = 256
    c.lr_schedule = "step"
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0

    c.data.source = "tfds:imagenet2012"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
