"""MoCo v1 and v2, end-to-end and memory banks on ImageNet-1k, ResNet-50, 200 epochs.

v1: He et al. 2019 (arXiv 1911.05722); linear top-1 60.8 +- .2 reported by facebookresearch/moco.
v2: Chen et al. 2020 (arXiv 2003.04297); linear top-1 67.5 +- .1 (71.1 at 800 epochs), likewise.
end_to_end: v1 with the batch as its dictionary and both encoders trained (fig. 2a), 1024 images
a step, the largest that the paper trained so; the rate follows the batch, as it says it must.
memory_bank: v1 with a bank of all images' old features, 65,536 of them drawn at each step (fig.
2b); linear top-1 58.0 by notes on the paper.
instdisc: instance discrimination (Wu et al. 2018, arXiv 1805.01978): the bank with NCE and 4096
draws; linear top-1 54.0 reported, 54.3 as MoCo's authors ran it, by the same notes.
There, v1's and v2's 200 epochs take 53 h on 8 V100. bn_groups=8 are those 8 GPUs' batch-norm groups
of 32 images, on any number of devices here.

Images: a folder or tar with train/<class>/*.JPEG (and val/<class>/ for the kNN monitor), named by
--config.data.path, or TFDS's imagenet2012 prepared as array_record.

Commands:
  python -m moco_jax.main --config=configs/imagenet.py --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet.py:v1 --config.data.path=/data/imagenet
  python -m moco_jax.main --config=configs/imagenet.py --config.epochs=800
  python -m moco_jax.main --config=configs/imagenet.py:end_to_end
  python -m moco_jax.main --config=configs/imagenet.py:instdisc
"""

from moco_jax import config
from moco_jax.data.augment import recipes

VARIANTS = ("v1", "v2", "end_to_end", "memory_bank", "instdisc")


def get_config(variant: str = "v2"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/imagenet.py:{variant} is unknown; known: {', '.join(VARIANTS)}")
    c = config.base()  # which is v2's recipe
    c.name = f"imagenet_{variant}"
    c.epochs = 200
    c.data.source = "tfds:imagenet2012"
    if variant != "v2":
        c.model.head = "linear"
        c.temperature = 0.07
        c.lr_schedule = "step"  # x .1 at epochs 120 and 160
        c.views = (recipes.v1(), recipes.v1())
    if variant == "end_to_end":
        c.dictionary = "in_batch"
        c.key_encoder = "trained"
        c.batch_size = 1024
        c.bn_groups = 32  # of 32 images, as with v1
    if variant in ("memory_bank", "instdisc"):
        c.dictionary, c.key_encoder = "memory_bank", "none"
        c.views = (recipes.v1(),)
    if variant == "instdisc":
        c.bank.loss = "nce"
        c.bank.negatives = 4096
    return c
