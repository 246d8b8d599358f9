"""MoCo v2 on scikit-learn's handwritten digits, coloured, on varied backgrounds: a first run.

Paper: none for this recipe; the method is MoCo v2 (Chen et al. 2020, arXiv 2003.04297). Small
batches give many steps. The short queue holds the keys of 8 steps, as in the reference's CIFAR-10
demo. Views of 16x16 pixels are enough for digits that were 8x8. Nothing is downloaded.

Reported: nothing.
Measured: kNN top-1 72.42 % on 1,200 test images, one seed, recipe tuned on the same images
(untrained network 23.75 %, raw pixels 42.75 %). Other processors and versions end between 70.25 %
and 73.92 %; see benchmarks/results/digits.md.
Wall time: 4:20 on 2 cores of an AMD EPYC.

Variant v3: MoCo v3 (Chen et al. 2021, arXiv 2104.02057) with the same network and views, 18 epochs.
It has SGD: after 6 epochs kNN top-1 was 28.50 % with LARS and 41.67 % with SGD.
Measured: kNN top-1 56.83 %, one seed; see benchmarks/results/digits.md.
Wall time: 2:00 on 2 cores, when v2 took 2:08.

Commands:
  bash launch/local.sh --config=configs/digits.py
  bash launch/local.sh --config=configs/digits.py:v3
"""

from moco_jax import config, variants
from moco_jax.data.augment import recipes

CROP, _, JITTER, GRAYSCALE = recipes.cifar(min_scale=0.5)
# No flip: a mirrored digit is another sign. Any hue: colour says nothing about a digit.
VIEW = (CROP, JITTER | {"hue": 0.5}, GRAYSCALE)
CROPPED = (CROP | {"interpolation": "bicubic"},)

V3 = {
    "epochs": 18,
    "model.head": "mlp_bn",
    "model.head_layers": 2,
    "model.hidden": 512,
    "model.predictor_layers": 2,
    "model.predictor_last_norm": False,
    "dictionary": "in_batch",
    "momentum": 0.99,
    "momentum_schedule": "cosine",
    "temperature": 0.2,
    "loss_scale": "2T",
    "symmetric": True,
    "bn_groups": 1,
    "shuffle_bn": False,
    "lr": 0.06,
}
VIT = {
    "epochs": 36,
    "model.name": "vit_tiny",
    "model.stem": "patch",
    "model.width": 0.5,  # 96 values
    "model.patch": 4,
    "model.heads": 0,  # 3
    "model.depth": 4,
    "model.pool": "mean",
    "optimizer": "adamw",
    "lr": 1e-3,
    "adam_b1": 0.9,
    "adam_eps": 1e-8,
    "warmup_epochs": 4.0,
}
V3_VIT = (
    V3
    | VIT
    | {
        "model.positions": "sincos",
        "model.vit_init": "moco_v3",
        "model.predictor_last_norm": True,
        "adam_b2": 0.999,
        "weight_decay": 0.1,
        "decay_all": True,
    }
)
MASKED = {
    "pretext": "masked",
    "mask.fraction": 0.75,
    "mask.block": 1,
    "mask.normalize_pixels": True,
    "decoder.dim": 64,
    "decoder.depth": 2,
    "decoder.heads": 2,
    "model.positions": "sincos_mae",
    "model.vit_init": "mae",
    "adam_b2": 0.95,
    "weight_decay": 0.05,
    "decay_all": False,
    "views": (CROPPED,),
}
VARIANTS = {
    "v3": V3,
    "v3_vit": V3_VIT,
    "mae": VIT | MASKED,
    "v3_mae": V3_VIT
    | MASKED
    | {
        "pretext": "both",
        "contrastive_weight": 1.0,
        "masked_weight": 1.0,
        "symmetric": False,
        "views": (CROPPED, VIEW),
    },
}


def get_config(variant: str = ""):
    c = config.base()
    c.name = "digits"
    c.epochs = 36
    c.batch_size = 64
    c.log_every = 50
    c.checkpoint_every = 500

    c.model.name = "resnet10"
    c.model.stem = "small"
    c.model.stem_init = "fan_out"
    c.model.width = 0.25
    c.model.zero_init_residual = False
    c.model.head = "mlp"
    c.model.hidden = 0  # 128, the number of features
    c.model.dim = 128
    c.model.predictor_layers = 0

    c.pretext = "contrastive"
    c.dictionary = "queue"
    c.key_encoder = "momentum"
    c.momentum = 0.99
    c.momentum_schedule = "constant"
    c.temperature = 0.2
    c.loss_scale = "none"
    c.queue_size = 512
    c.symmetric = False
    c.bn_groups = 8
    c.shuffle_bn = True

    c.lr = 0.03
    c.lr_batch = 64
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.warmup_epochs = 1
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 5e-4

    c.data.source = "digits"
    c.data.image_size = 16
    c.data.eval_resize = 16
    c.data.mean = (0.5, 0.5, 0.5)
    c.data.std = (0.25, 0.25, 0.25)

    c.knn.every_epochs = 6
    c.knn.features = "backbone"
    c.knn.k = 200
    c.knn.temperature = 0.1

    c.views = (VIEW, VIEW)
    if variant:
        variants.apply(c, VARIANTS, variant)
    return c
