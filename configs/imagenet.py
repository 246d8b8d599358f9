"""MoCo v1, MoCo v2 and the paper's other mechanisms on ImageNet-1k: ResNet-50, 200 epochs.

Variants, papers and reported linear top-1 on ImageNet:
  v2           Chen et al. 2020, arXiv 2003.04297: 67.5 +- .1 % (71.1 % at 800 epochs).
  v1           He et al. 2019, arXiv 1911.05722: 60.8 +- .2 %.
  end_to_end   v1 with in-batch negatives; both encoders are trained (fig. 2a). 1024 images a step
               is the largest batch that the paper trained this way. The learning rate scales with
               the batch, as the paper requires.
  memory_bank  v1 with 65,536 negatives a step from a bank of old features of all images
               (fig. 2b): 58.0 %.
  instdisc     instance discrimination (Wu et al. 2018, arXiv 1805.01978), a bank with NCE and
               4096 negatives: 54.0 %, and 54.3 % in the rerun by MoCo's authors.
The numbers of v1 and v2 are from facebookresearch/moco. Those of the banks are from a third
party's notes on the MoCo paper, not checked against it.

Measured: not run here. Only the compiled step was studied
(benchmarks/results/compiled_step.md).
Wall time: not measured. Reported for 200 epochs of v1 or v2: 53 h on 8 V100.

bn_groups=8 reproduces the batch norm of the reference's 8 GPUs, 32 images each, on any number of
devices. The images are a folder or tar with train/<class>/*.JPEG (and val/<class>/ for the kNN
monitor) at --config.data.path, or TFDS's imagenet2012 prepared as array_record.

Commands:
  python -m moco_jax.main --config=configs/imagenet.py:v2 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet.py:v2 --config.epochs=800
  python -m moco_jax.main --config=configs/imagenet.py:v1
  python -m moco_jax.main --config=configs/imagenet.py:end_to_end
  python -m moco_jax.main --config=configs/imagenet.py:memory_bank
  python -m moco_jax.main --config=configs/imagenet.py:instdisc
"""

from moco_jax import config, variants
from moco_jax.data.augment import recipes

V2 = {
    "model.head": "mlp",
    "temperature": 0.2,
    "lr_schedule": "cosine",
    "views": (recipes.v2(), recipes.v2()),
}
V1 = {
    "model.head": "linear",
    "temperature": 0.07,
    "lr_schedule": "step",
    "lr_drops": (0.6, 0.8),  # lr x .1 at epochs 120 and 160
    "views": (recipes.v1(), recipes.v1()),
}
BANK = V1 | {
    "dictionary": "memory_bank",
    "key_encoder": "none",
    "bank.negatives": 65536,
    "bank.momentum": 0.5,
    "bank.loss": "info_nce",
    "views": (recipes.v1(),),
}
VARIANTS = {
    "v1": V1,
    "v2": V2,
    "end_to_end": V1
    | {
        "dictionary": "in_batch",
        "key_encoder": "trained",
        "batch_size": 1024,
        "bn_groups": 32,  # of 32 images, as in v1
    },
    "memory_bank": BANK,
    "instdisc": BANK | {"bank.loss": "nce", "bank.negatives": 4096},
}


def get_config(variant: str = "v2"):
    c = config.base()
    c.name = "imagenet"
    c.epochs = 200
    c.batch_size = 256

    c.model.name = "resnet50"
    c.model.stem = "imagenet"
    c.model.stem_init = "fan_out"
    c.model.width = 1.0
    c.model.zero_init_residual = False
    c.model.hidden = 0  # of the mlp head: 2048, the number of features
    c.model.dim = 128
    c.model.predictor_layers = 0

    c.pretext = "contrastive"
    c.dictionary = "queue"
    c.key_encoder = "momentum"
    c.momentum = 0.999
    c.momentum_schedule = "constant"
    c.loss_scale = "none"
    c.queue_size = 65536
    c.symmetric = False
    c.bn_groups = 8
    c.shuffle_bn = True

    c.lr = 0.03
    c.lr_batch = 256
    c.lr_update = "epoch"
    c.warmup_epochs = 0.0
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-4

    c.data.source = "tfds:imagenet2012"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 224
    c.data.eval_resize = 256
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    variants.apply(c, VARIANTS, variant)
    return c
