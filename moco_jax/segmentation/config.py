"""The base config of semantic segmentation: every key, with its meaning and unit.

Keys that pretraining and fine-tuning have too mean the same as there.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from moco_jax.models.resnet import STEMS
from moco_jax.pretraining.validation import DTYPES
from moco_jax.segmentation.voc import IGNORED
from moco_jax.supervised import validation
from moco_jax.supervised.config import downstream
from moco_jax.training import checks
from moco_jax.training.optimizers import SCHEDULES, UPDATES


def base() -> ConfigDict:
    """Returns a recipe after MoCo's VOC segmentation (He et al. 2019, appendix), all keys set.

    Written from memory and not compared with the paper: the length of the run above all.
    """
    c = downstream("segment")
    c.epochs = 50
    c.batch_size = 16  # crops
    c.bn_groups = 1  # synchronised
    c.classes = 21  # C, the background included
    c.head = ConfigDict()  # of two 3x3 convolutions
    c.head.width = 256  # channels
    c.head.dilation = 6

    c.lr = 0.003  # for a batch of lr_batch crops, in proportion to batch_size
    c.lr_batch = 16
    c.lr_update = "step"
    c.lr_drops = (0.7, 0.9)
    c.weight_decay = 1e-4

    c.data = ConfigDict()
    c.data.path = ""  # folder that holds JPEGImages: VOCdevkit/VOC2012; ~ is understood
    c.data.train_split = "train_aug"  # list in ImageSets/Segmentation
    c.data.test_split = "val"
    c.data.masks = "SegmentationClass"  # folder of the masks
    c.data.image_size = 513  # S, pixels, of a training crop
    c.data.scale = (0.5, 2.0)  # lowest and highest scale of the image in a training crop
    c.data.flip = 0.5  # probability
    c.data.threads = 0  # that decode; 0: as many as there are cores, at most 64
    c.data.mean = ()  # of pixels in 0..1; (): the encoder's
    c.data.std = ()
    return c.lock()


_RULES = checks.Rules(
    positive_integers=(
        "batch_size",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "bn_groups",
        "mesh.fsdp",
        "classes",
        "head.width",
        "head.dilation",
        "lr_batch",
        "data.image_size",
    ),
    positive=("model.width", "lr"),
    not_negative=("seed", "evaluate_every", "warmup_epochs", "weight_decay", "data.threads"),
    fractions=("sgd_momentum", "data.flip"),
    choices={
        "task": ("segment",),
        "dtype": DTYPES,
        "model.stem": STEMS,
        "lr_schedule": tuple(SCHEDULES),
        "lr_update": UPDATES,
    },
)


def check(config: ConfigDict, devices: int) -> None:
    """Raises one error with every problem of the config.

    Args:
      config: made from `base()`.
      devices: number of devices that share the batch.

    Raises:
      ValueError: names each problem, what was got and what is allowed.
    """
    problems = list(checks.unknown_keys(config, base(), "moco_jax.segmentation.config.base()"))
    if not problems:
        problems = [
            *checks.values(config, _RULES),
            *checks.drops(config),
            *checks.length(config),
            *validation.encoder(config),
            *_scenes(config),
        ]
        related = (config.batch_size, config.bn_groups, config.mesh.fsdp)
        if all(checks.is_whole(x) for x in related):
            problems += checks.batch(config, devices)
    checks.fail_on(problems)


def _scenes(config: ConfigDict) -> Iterator[str]:
    data = config.data
    if not data.path:
        yield "data.path='' names no scenes; give --config.data.path=VOCdevkit/VOC2012"
    if checks.is_whole(config.classes) and config.classes > IGNORED:
        yield f"classes={config.classes} must be at most {IGNORED}, the label that is ignored"
    scale = list(data.scale)
    numbers = len(scale) == 2 and all(checks.is_number(x) for x in scale)
    if not (numbers and 0 < scale[0] <= scale[1]):
        yield f"data.scale={scale!r} must be the lowest and the highest scale, above 0"
    # Whether the others are right is known when the encoder's have taken the place of empty ones.
    if data.mean or data.std:
        yield from checks.channels(data)
