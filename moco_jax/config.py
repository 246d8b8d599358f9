"""The base config: every key of an experiment, with its meaning and unit.

An experiment file in `configs/` calls `base()` and changes a few lines. Scalars can be changed on
the command line (`--config.lr=0.1`). What follows from other keys (steps from epochs, the scaled
learning rate) is computed where it is used, since a derived key would not follow an override.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from moco_jax.data.augment import recipes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def base() -> ConfigDict:
    """Returns the base config: MoCo v2 on a ResNet-50, all keys set, none to be added."""
    c = ConfigDict()

    c.task = "pretrain"  # what is done; other tasks have bases of their own, see moco_jax/main.py
    c.name = "moco"  # of the experiment; the default workdir is runs/<name>
    c.seed = 0  # all randomness is a function of the seed and the step
    c.epochs = placeholder(float)  # length of the run in passes over the data ...
    c.steps = placeholder(int)  # ... or in steps: one of the two
    c.batch_size = 256  # B, images a step, over all devices
    c.dtype = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    c.remat = False  # the gradient computes blocks again: less memory for about a third more work
    c.log_every = 50  # steps
    c.checkpoint_every = 1000  # steps
    c.keep_checkpoints = 2  # the latest so many are kept

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices that share the batch; -1: all that there are
    c.mesh.fsdp = 1  # neighbouring devices among which parameters, EMA and optimizer are split

    c.model = ConfigDict()
    c.model.name = "resnet50"  # see moco_jax/models/resnet.py
    c.model.stem = "imagenet"  # imagenet: 7x7/2 and max-pool; small: 3x3/1 for images of 32x32
    c.model.width = 1.0  # times the channels of every layer
    c.model.head = "mlp"  # linear (v1) or mlp (v2)
    c.model.hidden = 0  # hidden units of the mlp head; 0: as many as the backbone has features
    c.model.dim = 128  # D, length of a key

    c.dictionary = "queue"  # of the negatives: queue, in_batch (the other keys), memory_bank
    c.key_encoder = "momentum"  # momentum (an EMA), trained (end-to-end), shared (SimCLR), none
    c.momentum = 0.999  # m of the key encoder
    c.temperature = 0.2  # T of InfoNCE
    c.queue_size = 65536  # K, keys in the queue
    c.queue_dtype = "float32"  # of these keys; bfloat16 takes half the memory
    c.bank = ConfigDict()  # with dictionary=memory_bank, key_encoder=none, one view
    c.bank.negatives = 65536  # K, drawn from the bank at each step
    c.bank.momentum = 0.5  # fraction of a slot that is kept when its image is seen
    c.bank.loss = "info_nce"  # or nce (Wu et al. 2018)
    c.symmetric = False  # each view in turn is query and key; the two losses are summed
    c.bn_groups = 8  # G, parts of the batch with batch-norm statistics of their own (GPUs, there)
    c.shuffle_bn = True  # keys meet other images in their group than their queries do

    c.lr = 0.03  # for a batch of lr_batch images, in proportion to batch_size
    c.lr_batch = 256  # images
    c.lr_schedule = "cosine"  # cosine, step or constant
    c.lr_update = "epoch"  # the schedule moves every epoch (the reference) or every step
    c.lr_drops = (0.6, 0.8)  # step schedule: lr x .1 at these fractions of what follows warm-up
    c.warmup_epochs = 0.0  # lr rises linearly from 0
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-4  # on every parameter, as the reference

    c.data = ConfigDict()
    c.data.source = "images"  # digits, images or tfds:<name>; see moco_jax/data/sources/opening.py
    c.data.path = ""  # folder, tar or .npz of images, or a TFDS data_dir; ~ is understood
    c.data.train_split = "train"
    c.data.test_split = "test"  # held-out labelled images, for the kNN monitor
    c.data.held_out = 0.1  # fraction of a labelled source without test split that becomes its test
    c.data.image_size = 224  # S, pixels, of a view
    c.data.eval_resize = 256  # pixels of the shorter side before the centre crop of evaluation
    c.data.canvas = 512  # pixels; larger images are decoded at a smaller scale
    c.data.resident_megabytes = 2048  # smaller data sets stay decoded in device memory
    c.data.threads = 0  # that decode; 0: as many as there are cores, at most 64
    c.data.max_bad_fraction = (
        0.01  # fraction of unreadable images, met by one process, that stops it
    )
    c.data.mean = IMAGENET_MEAN  # of pixels in 0..1
    c.data.std = IMAGENET_STD
    c.views = (recipes.v2(), recipes.v2())  # recipes of the query's view and of the key's, if any

    c.knn = ConfigDict()  # monitor on held-out labelled images, where there are any
    c.knn.every_epochs = 5.0  # 0: never
    c.knn.k = 200  # neighbours
    c.knn.temperature = 0.1
    c.knn.features = "backbone"  # backbone: pooled features; head: keys
    c.knn.bank = 100_000  # at most so many training images are neighbours; 0: all
    c.knn.queries = 10_000  # at most so many images are classified; 0: all
    c.drift = True  # with kNN: the dictionary's keys against today's of the same views
    return c.lock()


def keys_per_step(config: ConfigDict) -> int:
    """Returns N, the keys that enter the queue at each step."""
    return config.batch_size * (2 if config.symmetric else 1)


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the length of the run in steps, at least 1."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * steps_per_epoch))


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"model.name": "resnet50", ...}, values as JSON has them (tuples are lists)."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _plain(value)
    return flat


def from_recipe(recipe: dict[str, Any]) -> ConfigDict:
    """Returns the config that `flatten` gave, from JSON, without keys that are no longer known.

    A key that the recipe lacks has the base's value.
    """
    config = base()
    known = flatten(config)
    given = {key: _frozen(value) for key, value in recipe.items() if key in known}
    # Optional keys have no value to update, and views change their length.
    for key, value in given.items():
        *folders, name = key.split(".")
        holder: Any = config
        for folder in folders:
            holder = holder[folder]
        if value is not None:
            holder[name] = value
    return config


def _frozen(value):
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    return value


def _plain(value):
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    return value
