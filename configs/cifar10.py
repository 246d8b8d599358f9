"""MoCo on CIFAR-10 by the recipe of the reference's CIFAR-10 demo.

He et al. 2019 (arXiv 1911.05722), the demo notebook of facebookresearch/moco. It reports kNN top-1
82.6 / 86.3 / 88.7 % after 200 / 400 / 800 epochs (asymmetric) and 85.3 / 88.5 / 89.7 % (symmetric)
on the original, lossless images, at about 20 s an epoch on one V100.

The other variants are the demo's network and schedule with other mechanisms, for comparison. Nobody
reports accuracies for them.
end_to_end, simclr: the other keys of the batch are the negatives, and the key encoder is trained by
  gradient (MoCo, fig. 2a) or is the queries' own (Chen et al. 2020, arXiv 2002.05709: mlp head, one
  group of batch norm, T = .5; half the rate, since the two directions' losses are summed here).
memory_bank, instdisc: 4096 negatives are drawn from a bank of all images' old features; InfoNCE
  (MoCo, fig. 2b) and, at half the rate, the NCE of instance discrimination (Wu et al. 2018, arXiv
  1805.01978).

Images: TFDS's cifar10, prepared as array_record, or a folder or tar with train/<class>/ and
test/<class>/, named by --config.data.path.

Commands:
  python -m moco_jax.main --config=configs/cifar10.py --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10.py:symmetric
  python -m moco_jax.main --config=configs/cifar10.py:end_to_end
  python -m moco_jax.main --config=configs/cifar10.py:simclr
  python -m moco_jax.main --config=configs/cifar10.py:memory_bank
  python -m moco_jax.main --config=configs/cifar10.py:instdisc
"""

from moco_jax import config
from moco_jax.data.augment import recipes

VARIANTS = ("asymmetric", "symmetric", "end_to_end", "simclr", "memory_bank", "instdisc")


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
    if variant in ("memory_bank", "instdisc"):
        c.dictionary, c.key_encoder = "memory_bank", "none"
        c.bank.negatives = 4096
        c.views = (recipes.cifar(),)
    if variant == "instdisc":
        c.bank.loss = "nce"
        c.lr = 0.03  # for 512 images; theirs is .03 for 128, of another network
    return c
