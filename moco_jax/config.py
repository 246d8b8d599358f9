"""The base config of pretraining: every key, its meaning and unit, and what it may be.

An experiment file in `configs/` calls `base()` and changes a few lines. Scalars can be changed on
the command line (`--config.lr=0.1`). Values that follow from other keys (steps from epochs, the
scaled learning rate) are computed where they are used, since a derived key would not follow an
override.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from moco_jax.contrastive.dictionaries import BANK_LOSSES, DICTIONARIES
from moco_jax.contrastive.info_nce import LOSS_SCALES
from moco_jax.contrastive.key_encoders import KEY_ENCODERS, MOMENTUM_SCHEDULES
from moco_jax.data.augment import recipes
from moco_jax.data.sources.folders import CLASS_FOLDERS
from moco_jax.models import vit
from moco_jax.models.backbones import BACKBONES
from moco_jax.models.encoder import FEATURES
from moco_jax.models.heads import HEADS
from moco_jax.models.pretexts import PRETEXTS
from moco_jax.models.resnet import STEM_INITS
from moco_jax.training import checks
from moco_jax.training.checks import (
    fraction,
    not_negative,
    one_of,
    positive,
    whole,
    whole_or_zero,
)
from moco_jax.training.optimizers import OPTIMIZERS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def base() -> ConfigDict:
    """Returns the base config: MoCo v2 on a ResNet-50. Every key is set; none can be added."""
    c = ConfigDict()

    c.task = "pretrain"  # other tasks have their own base configs, see moco_jax/main.py
    c.name = "moco"  # of the experiment; the default workdir is runs/<name>
    c.seed = 0  # all randomness is a function of the seed and the step
    c.fits_data = False  # fill the keys that are None with values that fit the images
    c.epochs = placeholder(float)  # length of the run in passes over the data; or set steps
    c.steps = placeholder(int)  # length of the run in steps; or set epochs
    c.batch_size = 256  # B, images a step, over all devices
    # M, parts of the batch that pass the backbone in turn: the same update with less memory, and
    # one more forward pass.
    c.microbatches = 1
    c.dtype = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    c.remat = False  # recompute blocks for the gradient: less memory, about a third more work
    c.log_every = 50  # steps between lines of metrics.jsonl and of the console
    c.checkpoint_every = 1000  # steps between checkpoints
    c.keep_checkpoints = 2  # the latest checkpoints that are kept
    c.wandb = ""  # PROJECT or ENTITY/PROJECT: log to Weights & Biases too
    c.mlflow = ""  # URI or folder: log to MLflow too
    c.log_views = True  # log views at the start, and reconstructions of masked ones

    c.mesh = _mesh()
    c.model = _model()
    c.init = ""  # workdir or file of weights that the backbone starts from; heads stay random
    # contrastive, masked (MAE: predict pixels of masked patches) or both (the queries are masked).
    # masked reads no key of dictionary, key encoder and heads, and only the first view.
    c.pretext = "contrastive"
    c.contrastive_weight = 1.0  # of its loss, for pretext=both; 0: masked only
    c.masked_weight = 1.0  # of its loss, for pretext=both; 0: contrastive only
    c.mask = _mask()
    c.decoder = _decoder()

    c.dictionary = "queue"  # queue, in_batch (the other keys of the batch) or memory_bank
    c.key_encoder = "momentum"  # momentum (an EMA), trained (end-to-end), shared (SimCLR), none
    c.momentum = 0.999  # m of the key encoder
    c.momentum_schedule = "constant"  # constant, or cosine: m rises to 1 over the run (v3)
    c.temperature = 0.2  # T of InfoNCE
    c.loss_scale = "none"  # factor of the loss: none (1) or 2T (v3)
    c.queue_size = 65536  # K, keys in the queue
    c.queue_dtype = "float32"  # of these keys; bfloat16 takes half the memory
    c.bank = _bank()
    c.symmetric = False  # each view is query and key in turn; the two losses are summed
    c.bn_groups = 8  # G, parts of the batch with their own batch-norm statistics (one a GPU)
    c.shuffle_bn = True  # a key meets other images in its group than its query

    c.lr = 0.03  # for a batch of lr_batch images, in proportion to batch_size
    c.lr_batch = 256  # images
    c.lr_schedule = "cosine"  # cosine, step or constant
    # The schedule moves every epoch, counted from 0 (epoch: v1, v2) or from 1 (epoch_from_1: the
    # CIFAR-10 demo), or every step.
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)  # step schedule: lr x .1 at these fractions of the run after warm-up
    c.warmup_epochs = 0.0  # lr rises linearly from 0
    c.optimizer = "sgd"  # sgd, lars (v3's, for a ResNet) or adamw
    c.sgd_momentum = 0.9  # of sgd and lars
    c.decay_all = True  # False: no weight decay of biases and norms (MAE; lars never has it)
    c.weight_decay = 1e-4  # added to the gradient, times the parameter; adamw: taken off, times lr
    c.lars_trust = 0.001  # of lars: length of a step in norms of the parameter, at lr 1
    c.adam_b1 = 0.9  # of adamw: fraction of the mean gradient that is kept
    c.adam_b2 = 0.999  # of adamw: fraction of the mean squared gradient that is kept
    c.adam_eps = 1e-8  # of adamw: is added to the root of the mean square

    c.data = _data()
    c.views = (recipes.v2(), recipes.v2())  # recipes of the query's view and of the key's view
    c.knn = _knn()
    c.health = _health()
    c.drift = True  # with the kNN monitor: compare the dictionary's keys with today's keys
    return c.lock()


def _mesh() -> ConfigDict:
    c = ConfigDict()
    c.data = -1  # devices that split the batch; -1: all devices
    c.fsdp = 1  # neighbouring devices that split parameters, EMA and optimizer state
    return c


def _model() -> ConfigDict:
    c = ConfigDict()
    c.name = "resnet50"  # see moco_jax/models/resnet.py and moco_jax/models/vit.py
    # ResNets: imagenet (7x7/2 and max-pool) or small (3x3/1 for images of 32x32). ViTs: patch (a
    # linear map of each patch) or conv (four 3x3/2 with batch norm; one block less).
    c.stem = "imagenet"
    # Random weights of the stem's convolution: fan_out (normal, as of all convolutions) or fan_in
    # (uniform, torch's default).
    c.stem_init = "fan_out"
    c.width = 1.0  # times the channels of every layer; a ViT keeps its number of heads
    c.zero_init_residual = False  # ResNets: each block starts as its shortcut (v3)
    c.patch = 16  # ViTs: pixels of a patch's side; must divide the image size
    c.heads = 0  # ViTs: of the attention; 0: those of the named network
    c.depth = 0  # ViTs: number of blocks; 0: those of the named network
    c.pool = "cls"  # ViTs: the features are the class token (cls) or the mean of the others (mean)
    # ViTs: sincos or sincos_mae (fixed, in the orientation of v3 or MAE), or learned (a parameter,
    # for images of one size).
    c.positions = "sincos"
    c.vit_init = "moco_v3"  # ViTs: random weights as in moco_v3 or mae
    c.freeze_patch = False  # ViTs: the map of the patches keeps its random weights (v3)
    c.head = "mlp"  # linear (v1), mlp (v2) or mlp_bn (v3: with batch norm, no bias)
    c.head_layers = 2  # linear layers of the mlp_bn head
    # Hidden units of the heads mlp and mlp_bn, and of the predictor; 0: as many as the backbone has
    # features.
    c.hidden = 0
    c.dim = 128  # D, length of a key
    c.predictor_layers = 0  # linear layers of the predictor, which only queries pass; 0: none
    c.predictor_last_norm = True  # a batch norm follows its last layer (v3: not with a ResNet)
    return c


def _mask() -> ConfigDict:
    c = ConfigDict()  # for pretext=masked and both
    c.fraction = 0.75  # of the patches that are masked
    c.block = 1  # side of the masked blocks, in patches
    c.normalize_pixels = True  # predict each patch with mean 0 and variance 1
    return c


def _decoder() -> ConfigDict:
    c = ConfigDict()  # for pretext=masked and both
    c.dim = 512  # length of its tokens
    c.depth = 8  # number of blocks
    c.heads = 16  # of the attention
    return c


def _bank() -> ConfigDict:
    c = ConfigDict()  # for dictionary=memory_bank, key_encoder=none and one view
    c.negatives = 65536  # K, drawn from the bank at each step
    c.momentum = 0.5  # fraction of a slot that is kept when its image is seen
    c.loss = "info_nce"  # info_nce or nce (Wu et al. 2018)
    return c


def _data() -> ConfigDict:
    c = ConfigDict()
    c.source = "images"  # digits, images or tfds:<name>; see moco_jax/data/sources/opening.py
    # folder, archive, shards or .npz of images, Parquet or Arrow files, a list of paths, or a TFDS
    # data_dir; '+' joins several; ~ is expanded
    c.path = ""
    c.train_split = "train"  # subfolder or split with the training images
    c.test_split = "test"  # held-out labelled images, for the kNN monitor
    c.class_folders = "first"  # class folders: first (below the split) or leaf (the innermost)
    c.exclude = ""  # folders and files that are left out, such as "masks,*_seg.png"
    c.image_column = ""  # of Parquet and Arrow files: images; of a list: paths; "" finds it
    c.label_column = ""  # of Parquet and Arrow files, a list or metadata; "" finds it
    c.held_out = 0.1  # fraction of a labelled source without test split that becomes its test
    c.image_size = 224  # S, pixels, of a view
    c.eval_resize = 256  # pixels of the shorter side before the centre crop of evaluation
    c.canvas = 512  # pixels; larger images are decoded at a smaller scale
    c.resident_megabytes = 2048  # smaller data sets stay decoded in device memory
    # Threads that read and decode; 0: one per core, at most 64; 32 per core for a bucket.
    c.threads = 0
    # GB of images from buckets that are kept on the disk, in the cache folder; 0: none.
    c.cache_gigabytes = 0.0
    c.exif_orientation = True  # turn images upright by their EXIF orientation
    c.bit_depth = 16  # significant bits of 16-bit images, such as 12 for a 12-bit sensor
    c.max_megapixels = 89.5  # images with more pixels are unreadable
    c.may_change = False  # continue a run although its images have changed
    # Of unreadable images, found by one process, or of bad rows of a list, that stops the run.
    c.max_bad_fraction = 0.01
    c.mean = IMAGENET_MEAN  # of pixels in 0..1
    c.std = IMAGENET_STD  # of pixels in 0..1
    return c


def _knn() -> ConfigDict:
    c = ConfigDict()  # the monitor on held-out labelled images
    c.every_epochs = 5.0  # epochs between evaluations, of health and drift too; 0: never
    c.k = 200  # neighbours
    c.temperature = 0.1  # of the votes: a smaller one gives near neighbours more weight
    c.features = "backbone"  # backbone: pooled features; head: keys
    c.bank = 100_000  # most training images that are neighbours; 0: all
    c.queries = 10_000  # most images that are classified; 0: all
    return c


def _health() -> ConfigDict:
    c = ConfigDict()  # measures at each evaluation, see docs/health.md
    # Images whose rank, spread and similarities are measured: held-out ones, or training images if
    # no labelled ones are held out; 0: none.
    c.images = 1024
    c.probe = True  # with the kNN monitor: fit a linear classifier on its features too
    return c


# What may be None with `fits_data`: `pretraining/fit.py` fills it. `epochs` stands for the length.
FITTED = (
    *("data.image_size", "data.eval_resize", "model.stem", "batch_size", "bn_groups"),
    *("queue_size", "momentum", "epochs", "warmup_epochs", "knn.every_epochs"),
)


def leave_to_data(config: ConfigDict, keys: Iterable[str] = FITTED) -> None:
    """Leaves keys to the images: sets them to None and `fits_data` to True.

    A value that is set later must have the type that the key had.
    """
    config.fits_data = True
    for key in keys:
        *groups, name = key.split(".")
        holder: Any = config
        for group in groups:
            holder = holder[group]
        kind = holder.get_type(name)
        with holder.unlocked():
            del holder[name]
            holder[name] = placeholder(kind)


# Of the keys of `data` that say how images are found and decoded.
DATA_RULES = {
    "data.class_folders": one_of(CLASS_FOLDERS),
    "data.bit_depth": checks.bit_depth,
    "data.max_megapixels": positive,
}
# What each key may be. `pretraining/validation.py` checks them, and how keys fit each other.
RULES = checks.COMMON_RULES | {
    "task": one_of(("pretrain",)),
    "microbatches": whole,
    "model.name": one_of(BACKBONES),
    "model.stem_init": one_of(STEM_INITS),
    "model.positions": one_of(vit.POSITIONS),
    "model.vit_init": one_of(vit.INITS),
    "model.head": one_of(HEADS),
    "model.head_layers": checks.layers,
    "model.hidden": whole_or_zero,
    "model.dim": whole,
    "model.predictor_layers": checks.layers_or_none,
    "pretext": one_of(PRETEXTS),
    "contrastive_weight": not_negative,
    "masked_weight": not_negative,
    "mask.fraction": fraction,
    "mask.block": whole,
    "decoder.dim": whole,
    "decoder.depth": checks.blocks,
    "decoder.heads": whole,
    "dictionary": one_of(DICTIONARIES),
    "key_encoder": one_of(KEY_ENCODERS),
    "momentum": fraction,
    "momentum_schedule": one_of(MOMENTUM_SCHEDULES),
    "temperature": positive,
    "loss_scale": one_of(LOSS_SCALES),
    "queue_size": whole,
    "queue_dtype": one_of(checks.DTYPES),
    "bank.negatives": whole,
    "bank.momentum": fraction,
    "bank.loss": one_of(BANK_LOSSES),
    "lr": positive,
    "optimizer": one_of(OPTIMIZERS),
    "lars_trust": positive,
    "adam_b1": checks.below_one,
    "adam_b2": checks.below_one,
    "adam_eps": positive,
    **DATA_RULES,
    "data.held_out": fraction,
    "data.image_size": whole,
    "data.eval_resize": whole,
    "data.canvas": whole,
    "data.resident_megabytes": whole_or_zero,
    "data.cache_gigabytes": not_negative,
    "data.max_bad_fraction": fraction,
    "knn.every_epochs": not_negative,
    "knn.k": whole,
    "knn.temperature": positive,
    "knn.features": one_of(FEATURES),
    "knn.bank": whole_or_zero,
    "knn.queries": whole_or_zero,
    "health.images": whole_or_zero,
}
