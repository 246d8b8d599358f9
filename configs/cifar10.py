"""MoCo on CIFAR-10 by the recipe of the reference's CIFAR-10 demo.

He et al. 2019 (arXiv 1911.05722), the demo notebook of facebookresearch/moco. It reports kNN top-1
82.6 / 86.3 / 88.7 % after 200 / 400 / 800 epochs (asymmetric) and 85.3 / 88.5 / 89.7 % (symmetric)
on the original, lossless pictures, at about 20 s an epoch on one V100.

end_to_end and simclr are the demo's network and schedule with other mechanisms, for comparison:
the other keys of the batch as negatives, and a key encoder that is trained by gradient (MoCo, fig.
2a) or is the queries' own (Chen et al. 2020, arXiv 2002.05709: mlp head, one group of batch norm,
T = .5; half the rate, since the two directions' losses are summed here). Nobody reports accuracies
for them.

Pictures: TFDS's cifar10, prepared as array_record, or a folder or tar with train/<class>/ and
test/<class>/, named by --config.data.path.

Commands:
  python -m moco_jax.main --config=configs/cifar10.py --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10.py:symmetric
  python -m moco_jax.main --config=configs/cifar10.py:end_to_end
  python -m moco_jax.main --config=configs/cifar10.py:simclr
"""

from moco_jax import config
from moco_jax.data import recipes

VARIANTS = ("asymmetric", "symmetric", "end_to_end", "simclr")


def get_config(variant: str = "asymmetric"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/cifar10.py:{variant} is unknown; known: {', '.join(VARIANTS)}")
    c = config.base()
    c.name = f"cifar10_{variant}"
    c.epochs = 200
    c.batch_size = 512
    c.checkpoint_every = 970  # 10 epochs of 97 steps

    c.model.name = "resnet18"
    c.model.stem = "small"
    c.model.head = "linear"

    c.momentum = 0.99
    c.temperature = 0.1
    c.queue_size = 4096
    c.symmetric = variant == "symmetric"

    c.lr = 0.06
    c.lr_batch = 512
    c.weight_decay = 5e-4

    c.data.source = "tfds:cifar10"
    c.data.image_size = 32
    c.data.eval_resize = 32
    c.data.mean = (0.4914, 0.4822, 0.4465)
    c.data.std = (0.2023, 0.1994, 0.2010)
    c.views = (recipes.cifar(), recipes.cifar())

    c.knn.features = "head"
    c.knn.bank = 0
    if variant in ("end_to_end", "simclr"):
        c.dictionary = "in_batch"
        c.key_encoder = "trained" if variant == "end_to_end" else "shared"
    if variant == "simclr":
        c.model.head = "mlp"
        c.temperature = 0.5
        c.symmetric = True
        c.bn_groups = 1
        c.lr = 0.03
    return c
