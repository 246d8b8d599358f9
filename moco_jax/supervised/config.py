"""The base configs of supervised evaluation: every key, with its meaning and unit.

`linear()` is the linear protocol on a frozen encoder, `finetune()` trains all of it; `downstream()`
is what segmentation shares with them. Keys that pretraining has too mean the same as in
`moco_jax/config.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from moco_jax import config as pretraining
from moco_jax.data.augment import recipes


def linear() -> ConfigDict:
    """Returns the linear protocol of MoCo v1 and v2 (moco `main_lincls.py`), all keys set."""
    c = _classification("linear")
    c.epochs = 100
    # One rate, or several: a head for each is trained on the same features in the same pass.
    c.lr = (30.0,)  # for a batch of lr_batch images, in proportion to batch_size
    c.cached = False  # features once, without augmentation, and L-BFGS instead of SGD
    c.l2 = (1e-4,)  # cached: mean cross-entropy + l2 / 2 ||W||^2; one strength, or several
    c.iterations = 1000  # cached: of L-BFGS, at most
    c.tolerance = 1e-5  # cached: of the gradient's largest entry, at which it has converged
    return c.lock()


def finetune() -> ConfigDict:
    """Returns fine-tuning with batch norm in training mode, all keys set.

    This project's recipe, no paper's: SGD, half a cosine, a tenth of pretraining's decay.
    """
    c = _classification("finetune")
    c.epochs = 30
    c.lr = 0.03  # of the backbone, for a batch of lr_batch images, in proportion to batch_size
    c.head_lr = 10.0  # times that, of the classifier
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.weight_decay = 1e-5
    c.label_smoothing = 0.0  # fraction of a target that is spread over all classes
    c.mixup = 0.0  # alpha of its Beta distribution; 0: none
    c.cutmix = 0.0  # likewise; with both, each batch has one of them
    c.ema = 0.0  # momentum of averaged weights, which are then evaluated; 0: none
    return c.lock()


def downstream(task: str) -> ConfigDict:
    """Returns the keys of every task that starts from an encoder, not locked yet."""
    c = ConfigDict()
    c.task = task
    c.name = task  # of the experiment; the default workdir is runs/<name>
    c.pretrained = ""  # the encoder: a workdir, a checkpoint of one, or a .safetensors
    c.from_scratch = False  # its architecture with random weights (or model's, if it is '')
    c.baseline = False  # the same from scratch as well, and the gain
    c.seed = 0
    c.epochs = placeholder(float)  # length of the run in passes over the data ...
    c.steps = placeholder(int)  # ... or in steps: one of the two
    c.batch_size = 256  # B, images a step, over all devices
    c.dtype = "float32"  # of the network: float32 or bfloat16; its last layer is float32
    c.log_every = 50  # steps
    c.checkpoint_every = 1000  # steps
    c.keep_checkpoints = 2
    c.evaluate_every = 5.0  # epochs; after the last step in any case
    c.mesh = ConfigDict({"data": -1, "fsdp": 1})

    c.model = ConfigDict()  # of an encoder from scratch; a pretrained one tells its own
    c.model.name = ""
    c.model.stem = "imagenet"
    c.model.width = 1.0
    c.bn_groups = 8  # parts of the batch with batch-norm statistics of their own, in training mode

    c.lr_batch = 256  # images, for which lr is meant
    c.lr_schedule = "step"  # cosine, step or constant
    c.lr_update = "epoch"
    c.lr_drops = (0.6, 0.8)  # lr x .1 at these fractions of the run
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 0.0
    return c


def _classification(task: str) -> ConfigDict:
    """Returns what linear evaluation and fine-tuning have, not locked yet."""
    base, c = pretraining.base(), downstream(task)
    c.label_fraction = 1.0  # of the training images, drawn class by class, at least one of each
    c.label_list = ""  # a file that names the training images instead, one a line

    c.data = ConfigDict({key: base.data[key] for key in base.data})
    c.data.image_size = 0  # pixels; 0: the encoder's
    c.data.eval_resize = 0  # pixels; 0: the encoder's, in proportion to image_size
    c.data.mean = ()  # of pixels in 0..1; (): the encoder's
    c.data.std = ()
    c.view = recipes.supervised()  # of training; the test's is the evaluation view
    return c
