"""The base configs of supervised tasks: every key, its meaning and unit, and what it may be.

`linear()` is the linear protocol on a frozen encoder, `finetune()` trains the whole network;
`downstream()` has the keys that segmentation shares with them. A key that pretraining has too has
the same meaning as in `moco_jax/config.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from moco_jax import config as pretraining
from moco_jax.data.augment import recipes
from moco_jax.models import vit
from moco_jax.training.checks import (
    COMMON_RULES,
    below_one,
    fraction,
    not_negative,
    one_of,
    positive,
    positive_fraction,
    whole,
    whole_or_zero,
)


def linear() -> ConfigDict:
    """Returns the linear protocol of MoCo v1 and v2 (moco `main_lincls.py`), all keys set."""
    c = _classification("linear")
    c.epochs = 100
    # One value or several: a head for each is trained on the same features in the same pass.
    c.lr = (30.0,)  # for a batch of lr_batch images, in proportion to batch_size
    c.optimizer = "sgd"  # sgd or lars (MAE)
    c.lars_trust = 0.001  # of lars: length of a step in norms of a head's kernel, at lr 1
    c.feature_norm = False  # batch norm of the features, without scale and bias (MAE)
    c.cached = False  # encode each image once, without augmentation, and fit by L-BFGS, not SGD
    c.l2 = (1e-4,)  # cached: mean cross-entropy + l2 / 2 ||W||^2; one value or several
    c.iterations = 1000  # cached: most iterations of L-BFGS
    c.tolerance = 1e-5  # cached: the fit has converged below this largest entry of the gradient
    return c.lock()


def finetune() -> ConfigDict:
    """Returns fine-tuning with batch norm in training mode, all keys set.

    The recipe is this project's own, not a paper's: SGD, cosine schedule, a tenth of the weight
    decay of pretraining.
    """
    c = _classification("finetune")
    c.epochs = 30
    c.model.drop_path = 0.0  # ViTs: probability that an image skips a branch of the last block
    c.model.positions = "sincos"  # ViTs: learned trains the encoder's fixed positions (MAE)
    c.fresh_norm = False  # ViTs: the last norm starts anew, with scale 1 and bias 0 (MAE)
    c.lr = 0.03  # of the backbone, for a batch of lr_batch images, in proportion to batch_size
    c.head_lr = 10.0  # the classifier's learning rate, times lr
    c.head_std = 0.01  # standard deviation of the classifier's random weights
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.weight_decay = 1e-5
    c.decay_all = True  # False: no decay of biases, norms, the class token and positions
    c.min_lr = 0.0  # the rate that the schedule falls to, not scaled with the batch
    c.layer_decay = 1.0  # factor of lr from each block to the one before it
    c.optimizer = "sgd"  # sgd or adamw
    c.adam_b1 = 0.9  # of adamw: fraction of the mean gradient that is kept
    c.adam_b2 = 0.999  # of adamw: fraction of the mean squared gradient that is kept
    c.adam_eps = 1e-8  # of adamw: is added to the root of the mean square
    c.label_smoothing = 0.0  # fraction of a target that is spread over all classes
    c.mixup = 0.0  # alpha of its Beta distribution; 0: no mixup
    c.cutmix = 0.0  # alpha of its Beta distribution; with mixup, each batch has one of them
    c.ema = 0.0  # momentum of averaged weights, which are then evaluated; 0: no average
    return c.lock()


def downstream(task: str) -> ConfigDict:
    """Returns the keys of every task that starts from an encoder, not locked yet."""
    c = ConfigDict()
    c.task = task
    c.name = task  # of the experiment; the default workdir is runs/<name>
    c.pretrained = ""  # the encoder: a workdir, one of its checkpoints, or a .safetensors
    c.from_scratch = False  # random weights of the encoder's architecture, or of `model`
    c.baseline = False  # run the same from scratch as well, and print the gain
    c.seed = 0
    c.epochs = placeholder(float)  # length of the run in passes over the data; or set steps
    c.steps = placeholder(int)  # length of the run in steps; or set epochs
    c.batch_size = 256  # B, images a step, over all devices
    c.dtype = "float32"  # of the network: float32 or bfloat16; its last layer is float32
    c.log_every = 50  # steps between lines of metrics.jsonl and of the console
    c.checkpoint_every = 1000  # steps between checkpoints
    c.keep_checkpoints = 2
    c.wandb = ""  # PROJECT or ENTITY/PROJECT: log to Weights & Biases too
    c.mlflow = ""  # URI or folder: log to MLflow too
    c.evaluate_every = 5.0  # epochs between evaluations; the last step is always evaluated
    c.mesh = ConfigDict({"data": -1, "fsdp": 1})

    c.model = ConfigDict()  # of an encoder from scratch; a pretrained one has its own
    c.model.name = ""
    c.model.stem = "imagenet"
    c.model.width = 1.0
    c.model.patch = 16
    c.model.heads = 0
    c.model.depth = 0
    c.model.pool = "cls"  # ViTs: cls or mean; mean also changes a pretrained one
    c.bn_groups = 8  # parts of the batch with their own batch-norm statistics, in training mode

    c.lr_batch = 256  # images, the batch for which lr is given
    c.lr_schedule = "step"  # cosine, step or constant
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)  # lr x .1 at these fractions of the run
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    return c


def _classification(task: str) -> ConfigDict:
    """Returns the keys of linear evaluation and fine-tuning, not locked yet."""
    base, c = pretraining.base(), downstream(task)
    c.fits_data = False  # batch_size may be None: it takes a value that fits the images
    c.label_fraction = 1.0  # of the training images, drawn from each class, at least one of each
    c.label_list = ""  # a file with the names of the training images instead, one a line

    c.data = ConfigDict({key: base.data[key] for key in base.data})
    c.data.image_size = 0  # pixels; 0: the encoder's
    c.data.eval_resize = 0  # pixels; 0: the encoder's, in proportion to image_size
    c.data.mean = ()  # of pixels in 0..1; (): the encoder's
    c.data.std = ()  # of pixels in 0..1; (): the encoder's
    c.view = recipes.supervised()  # of training; the test uses the evaluation view
    return c


# What each key may be. `supervised/validation.py` checks them, and how keys fit each other.
DOWNSTREAM_RULES = COMMON_RULES | {"evaluate_every": not_negative}
_CLASSIFICATION_RULES = DOWNSTREAM_RULES | {
    "label_fraction": fraction,
    **pretraining.DATA_RULES,
    "data.held_out": fraction,
    "data.image_size": whole_or_zero,
    "data.eval_resize": whole_or_zero,
    "data.canvas": whole,
    "data.resident_megabytes": whole_or_zero,
    "data.cache_gigabytes": not_negative,
    "data.max_bad_fraction": fraction,
}
RULES = {
    "linear": _CLASSIFICATION_RULES
    | {
        "optimizer": one_of(("sgd", "lars")),
        "lars_trust": positive,
        "iterations": whole,
        "tolerance": positive,
    },
    "finetune": _CLASSIFICATION_RULES
    | {
        "lr": positive,
        "head_lr": not_negative,
        "head_std": not_negative,
        "min_lr": not_negative,
        "layer_decay": positive_fraction,
        "optimizer": one_of(("sgd", "adamw")),
        "adam_b1": below_one,
        "adam_b2": below_one,
        "adam_eps": positive,
        "model.drop_path": below_one,
        "model.positions": one_of(vit.POSITIONS),
        "label_smoothing": fraction,
        "mixup": not_negative,
        "cutmix": not_negative,
        "ema": fraction,
    },
}
BASES = {"linear": linear, "finetune": finetune}
