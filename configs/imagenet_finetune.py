"""Fine-tuning on ImageNet-1k with all labels, 10 % or 1 % of them.

full, 10percent, 1percent: a recipe of no paper. The sets are those of Chen et al. 2020, arXiv
2002.05709 (SimCLR). They are drawn class by class. SimCLR's published lists, which name one image a
line, are used with --config.label_list=1percent.txt --config.label_fraction=1.
v3_vit_*: a ViT of MoCo v3 (Chen et al. 2021, arXiv 2104.02057, table 5) with the recipe of DeiT
(Touvron et al. 2021, arXiv 2012.12877; facebookresearch/deit, `main.py`): AdamW, stochastic depth,
label smoothing, mixup or CutMix, RandAugment, random erasing. Departures:
- no repeated augmentation (a batch of DeiT has three views of each image);
- bilinear crops and movements, not bicubic ones;
- the classifier starts from a normal distribution of deviation 0.01 (DeiT: truncated, 0.02);
- the warm-up rises from 0 in each step, and the cosine begins after it (DeiT: from 1e-6, in each
  epoch; its cosine has begun before).
DeiT keeps an average of the weights and evaluates the weights themselves, as here;
--config.ema=0.99996 evaluates the average.
mae_vit_*: a masked autoencoder (He et al. 2021, arXiv 2111.06377; facebookresearch/mae,
`main_finetune.py`): DeiT's recipe with bicubic crops, the mean of the patches behind a new norm,
trained positions, layer decay, a classifier that starts near 0, and no repeated augmentation.
Departures: the movements of RandAugment are bilinear, and so is the resizing of test images.
Reported: nothing for the first recipe; v3_vit_s 81.4 %, v3_vit_b 83.2 % after 150 epochs; mae_vit_b
83.6 %, mae_vit_l 85.9 % after 1600 epochs of pretraining (four seeds each: 83.57 and 85.87 %).
Measured: not run here.
Wall time: not measured.

Commands:
  python -m moco_jax.main --config=configs/imagenet_finetune.py:full
  python -m moco_jax.main --config=configs/imagenet_finetune.py:10percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent
  python -m moco_jax.main --config=configs/imagenet_finetune.py:1percent --config.baseline=True
  python -m moco_jax.main --config=configs/imagenet_finetune.py:v3_vit_b --config.dtype=bfloat16
  python -m moco_jax.main --config=configs/imagenet_finetune.py:mae_vit_b --config.dtype=bfloat16
"""

from moco_jax import variants
from moco_jax.data.augment import recipes
from moco_jax.supervised import config

_DEIT = {
    "epochs": 150,
    "batch_size": 1024,
    "bn_groups": 1,  # a ViT has no batch norm
    "model.drop_path": 0.1,
    "lr": 5e-4,
    "head_lr": 1.0,
    "lr_batch": 512,
    "lr_update": "epoch",
    "warmup_epochs": 5.0,
    "min_lr": 1e-5,
    "optimizer": "adamw",
    "adam_b1": 0.9,
    "adam_b2": 0.999,
    "adam_eps": 1e-8,
    "weight_decay": 0.05,
    "decay_all": False,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "view": recipes.deit(),
}
_MAE = {
    **_DEIT,
    "model.pool": "mean",
    "model.positions": "learned",
    "fresh_norm": True,
    "head_std": 2e-5,
    "lr_batch": 256,
    "lr_update": "step",
    "min_lr": 1e-6,
    "view": recipes.deit(interpolation="bicubic"),
}
VARIANTS = {
    "full": {"label_fraction": 1.0, "epochs": 30},
    "10percent": {"label_fraction": 0.1, "epochs": 30},
    "1percent": {"label_fraction": 0.01, "epochs": 60},
    "v3_vit_s": {**_DEIT, "pretrained": "runs/imagenet_v3_vit_s"},
    "v3_vit_b": {**_DEIT, "pretrained": "runs/imagenet_v3_vit_b"},
    "mae_vit_b": {
        **_MAE,
        "pretrained": "runs/imagenet_mae_vit_b",
        "epochs": 100,
        "lr": 5e-4,
        "layer_decay": 0.65,
        "model.drop_path": 0.1,
    },
    "mae_vit_l": {
        **_MAE,
        "pretrained": "runs/imagenet_mae_vit_l",
        "epochs": 50,
        "lr": 1e-3,
        "layer_decay": 0.75,
        "model.drop_path": 0.2,
    },
}


def get_config(variant: str = "full"):
    c = config.finetune()
    c.name = "imagenet_finetune"
    c.pretrained = "runs/imagenet_v2"
    c.batch_size = 256
    c.bn_groups = 8

    c.lr = 0.03
    c.head_lr = 10.0
    c.head_std = 0.01
    c.lr_batch = 256
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

    c.data.source = "tfds:imagenet2012"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.view = recipes.supervised()
    variants.apply(c, VARIANTS, variant)
    return c
