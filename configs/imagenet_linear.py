"""Linear protocol of MoCo on ImageNet-1k: a classifier on the frozen, pooled features.

The variant names the encoder, which configs/imagenet.py, configs/imagenet_v3.py or
configs/imagenet_mae.py pretrains. All variants train on random crops and flips, and test on the
central 224 of 256 pixels.

v1, v2: He et al. 2019, arXiv 1911.05722, sec. 4.1; facebookresearch/moco, `main_lincls.py`. 100
epochs of SGD with batches of 256, lr 30, no weight decay, x .1 at epochs 60 and 80.
v3_*: Chen et al. 2021, arXiv 2104.02057; facebookresearch/moco-v3, `main_lincls.py`. 90 epochs of
SGD with batches of 1024, lr .1 (ResNet) or 3 (ViT) for 256 images, no weight decay, a cosine that
moves every epoch. The paper sweeps the rate for batches of 4096: --config.lr=0.3,1,3,10.
mae_*: He et al. 2021, arXiv 2111.06377; facebookresearch/mae, `main_linprobe.py`. 90 epochs of LARS
with batches of 16384, lr .1 for 256 images, no weight decay, on features after a batch norm without
scale and bias, in groups of 512 images as on the reference's 32 GPUs. 50 epochs are enough for
vit_l: --config.epochs=50. Departures: a random crop is tried 10 times before the whole image is
taken (there: once, cut to the image), and the test images are resized bilinearly (there: bicubic).
Reported, top-1 after this many epochs of pretraining:
  v1 60.8 +- .2 % (200), v2 67.5 +- .1 % (200)
  v3_r50 68.9 (100), 72.8 (300), 74.6 % (1000)
  v3_vit_s 73.2 % (300), v3_vit_b 76.7 % (300), v3_vit_l 77.6 % (300, in the paper)
  mae_vit_b 67.8 % (1600; 68.0 in the paper), mae_vit_l 76.0 % (1600; 75.8 in the paper)
The references keep their best evaluation and do not say whether they report the best or the last.
This package prints both.
Measured: not run here to its end.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py:v1 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 \\
    --config.pretrained=r50.safetensors
  python -m moco_jax.main --config=configs/imagenet_linear.py:v2 --config.lr=0.1,1,10,30
  python -m moco_jax.main --config=configs/imagenet_linear.py:v3_vit_s
  python -m moco_jax.main --config=configs/imagenet_linear.py:v3_r50
  python -m moco_jax.main --config=configs/imagenet_linear.py:mae_vit_b
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

_V3 = {"epochs": 90, "batch_size": 1024, "lr_schedule": "cosine"}
_MAE = {
    "epochs": 90,
    "batch_size": 16384,
    "bn_groups": 32,
    "lr": (0.1,),
    "lr_schedule": "cosine",
    "lr_update": "step",
    "warmup_epochs": 10.0,
    "optimizer": "lars",
    "lars_trust": 0.001,
    "feature_norm": True,
    "model.pool": "cls",
    "view": recipes.supervised(interpolation="bicubic"),
}
VARIANTS = {
    "v1": {"pretrained": "runs/imagenet_v1"},
    "v2": {"pretrained": "runs/imagenet_v2"},
    "v3_r50": {**_V3, "lr": (0.1,), "pretrained": "runs/imagenet_v3_r50"},
    "v3_vit_s": {**_V3, "lr": (3.0,), "pretrained": "runs/imagenet_v3_vit_s"},
    "v3_vit_b": {**_V3, "lr": (3.0,), "pretrained": "runs/imagenet_v3_vit_b"},
    "v3_vit_l": {**_V3, "lr": (3.0,), "pretrained": "runs/imagenet_v3_vit_l"},
    "mae_vit_b": {**_MAE, "pretrained": "runs/imagenet_mae_vit_b"},
    "mae_vit_l": {**_MAE, "pretrained": "runs/imagenet_mae_vit_l"},
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
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    c.feature_norm = False

    c.data.source = "tfds:imagenet2012"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
