"""The base config of semantic segmentation: every key, its meaning and unit, and what it may be.

A key that pretraining or fine-tuning has too has the same meaning there.
"""

from ml_collections import ConfigDict

from moco_jax.supervised.config import DOWNSTREAM_RULES, downstream
from moco_jax.training.checks import fraction, one_of, positive, whole


def base() -> ConfigDict:
    """Returns a recipe after MoCo's VOC segmentation (He et al. 2019, appendix), all keys set.

    It was written from memory and not compared with the paper; above all the run's length.
    """
    c = downstream("segment")
    c.epochs = 50
    c.batch_size = 16  # crops
    c.bn_groups = 1  # synchronised
    c.classes = 21  # C, with the background
    c.head = ConfigDict()  # two 3x3 convolutions
    c.head.width = 256  # channels
    c.head.dilation = 6  # pixels of the feature map between the taps of a convolution

    c.lr = 0.003  # for a batch of lr_batch crops, in proportion to batch_size
    c.lr_batch = 16
    c.lr_update = "step"
    c.lr_drops = (0.7, 0.9)
    c.weight_decay = 1e-4

    c.data = ConfigDict()
    c.data.path = ""  # folder with JPEGImages: VOCdevkit/VOC2012; ~ is expanded
    c.data.train_split = "train_aug"  # list in ImageSets/Segmentation
    c.data.test_split = "val"
    c.data.masks = "SegmentationClass"  # folder of the masks
    c.data.image_size = 513  # S, pixels, of a training crop
    c.data.scale = (0.5, 2.0)  # lowest and highest scale of the image in a training crop
    c.data.flip = 0.5  # probability
    c.data.threads = 0  # threads that decode; 0: one per core, at most 64
    c.data.max_megapixels = 89.5  # images with more pixels are unreadable
    c.data.mean = ()  # of pixels in 0..1; (): the encoder's
    c.data.std = ()  # of pixels in 0..1; (): the encoder's
    return c.lock()


RULES = DOWNSTREAM_RULES | {
    "task": one_of(("segment",)),
    "lr": positive,
    "classes": whole,
    "head.width": whole,
    "head.dilation": whole,
    "data.image_size": whole,
    "data.flip": fraction,
    "data.max_megapixels": positive,
}
