"""MoCo and other mechanisms on CIFAR-10: ResNet-18, 200 epochs, by the reference's CIFAR-10 demo.

Paper: He et al. 2019, arXiv 1911.05722; the recipe is the demo notebook of facebookresearch/moco.

Variants:
  asymmetric   the demo.
  symmetric    the demo with the loss of both directions.
  end_to_end   in-batch negatives; the key encoder is trained by gradient (MoCo, fig. 2a).
  simclr       in-batch negatives; one encoder for both views (Chen et al. 2020, arXiv 2002.05709):
               mlp head, one batch-norm group, T = .5. The learning rate is halved because the
               losses of both directions are summed here.
  memory_bank  4096 negatives a step from a bank of old features of all images, InfoNCE (fig. 2b).
  instdisc     the same bank with the NCE of instance discrimination (Wu et al. 2018, arXiv
               1805.01978) at half the learning rate.

Reported: kNN top-1 82.6 / 86.3 / 88.7 % after 200 / 400 / 800 epochs (asymmetric) and
85.3 / 88.5 / 89.7 % (symmetric), on the original lossless images. No accuracy is reported for the
other variants with this network and schedule.
Measured: not run here at full size. A ResNet-10 of width 1/4 reaches kNN top-1 44.23 % after
5 epochs (raw pixels 37.62 %) on a lossy JPEG copy; see benchmarks/results/cifar10.md.
Wall time: not measured. The demo reports about 20 s an epoch on one V100 (asymmetric).

The images are TFDS's cifar10, prepared as array_record, or a folder or tar with train/<class>/ and
test/<class>/ at --config.data.path.

Commands:
  python -m moco_jax.main --config=configs/cifar10.py:asymmetric \\
    --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10.py:symmetric
  python -m moco_jax.main --config=configs/cifar10.py:end_to_end
  python -m moco_jax.main --config=configs/cifar10.py:simclr
  python -m moco_jax.main --config=configs/cifar10.py:memory_bank
  python -m moco_jax.main --config=configs/cifar10.py:instdisc
"""

from moco_jax import config, variants
from moco_jax.data.augment import recipes

BANK = {
    "dictionary": "memory_bank",
    "key_encoder": "none",
    "bank.negatives": 4096,
    "bank.momentum": 0.5,
    "bank.loss": "info_nce",
    "views": (recipes.cifar(),),
}
VARIANTS = {
    "asymmetric": {},
    "symmetric": {"symmetric": True},
    "end_to_end": {"dictionary": "in_batch", "key_encoder": "trained"},
    "simclr": {
        "dictionary": "in_batch",
        "key_encoder": "shared",
        "model.head": "mlp",
        "model.hidden": 0,  # 512, the number of features
        "temperature": 0.5,
        "symmetric": True,
        "bn_groups": 1,
        "lr": 0.03,
    },
    "memory_bank": BANK,
    # lr is for 512 images. The paper has .03 for 128 images of another network.
    "instdisc": BANK | {"bank.loss": "nce", "lr": 0.03},
}


def get_config(variant: str = "asymmetric"):
    c = config.base()
    c.name = "cifar10"
    c.epochs = 200
    c.batch_size = 512
    c.checkpoint_every = 970  # 10 epochs of 97 steps

    c.model.name = "resnet18"
    c.model.stem = "small"
    c.model.stem_init = "fan_in"  # the demo replaces torchvision's stem by a new convolution
    c.model.width = 1.0
    c.model.head = "linear"
    c.model.dim = 128

    c.dictionary = "queue"
    c.key_encoder = "momentum"
    c.momentum = 0.99
    c.temperature = 0.1
    c.queue_size = 4096
    c.symmetric = False
    c.bn_groups = 8
    c.shuffle_bn = True

    c.lr = 0.06
    c.lr_batch = 512
    c.lr_schedule = "cosine"
    c.lr_update = "epoch_from_1"
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 5e-4

    c.data.source = "tfds:cifar10"
    c.data.exif_orientation = False  # as the reference decodes
    c.data.image_size = 32
    c.data.eval_resize = 32
    c.data.mean = (0.4914, 0.4822, 0.4465)
    c.data.std = (0.2023, 0.1994, 0.2010)
    c.views = (recipes.cifar(), recipes.cifar())

    c.knn.features = "head"
    c.knn.k = 200
    c.knn.temperature = 0.1
    c.knn.bank = 0
    variants.apply(c, VARIANTS, variant)
    return c
