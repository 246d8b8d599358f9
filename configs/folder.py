"""MoCo v2 on your own images: `--config=configs/folder.py:/path/to/images`.

Paper: Chen et al. 2020, arXiv 2003.04297. From 131,072 images on the recipe is the paper's, with
another schedule step (every step, not every epoch). Fewer images get a shorter queue, a smaller
batch, m = .99, a warm-up and more epochs: moco_jax/pretraining/fit.py has the rule, docs/data.md a
table. Each chosen value is printed; a value on the command line replaces it.
Reported: nothing.
Measured: not run here to its end.
Wall time: not measured.

The path is a folder or an archive of images; docs/data.md lists what else it may be. With one
folder a class (`train/cat/1.jpg` or `cat/1.jpg`) the kNN monitor uses `test/` or `val/`, or else a
tenth that is held out. A flat folder works too because pretraining needs no labels.

`,small` after the path is for CPUs: a ResNet-10 of a quarter of the width on images of 32 pixels,
5,000 steps.

Commands:
  python -m moco_jax.main --config=configs/folder.py:/path/to/images
  python -m moco_jax.main --config=configs/folder.py:/path/to/images,small
"""

from moco_jax import config, variants
from moco_jax.data.augment import recipes

VARIANTS = {
    "small": {
        "model.name": "resnet10",
        "model.stem": "small",
        "model.width": 0.25,
        "data.image_size": 32,
        "steps": 5000,
    }
}


def get_config(path: str = ""):
    path, variant = variants.of_path(path, list(VARIANTS))
    if not path:
        raise ValueError("name the images: --config=configs/folder.py:/path/to/images")
    c = config.base()
    c.name = f"folder_{variants.name_of(path)}"

    c.model.name = "resnet50"
    c.model.stem_init = "fan_out"
    c.model.width = 1.0
    c.model.zero_init_residual = False
    c.model.head = "mlp"
    c.model.hidden = 0  # 2048, the number of features
    c.model.dim = 128
    c.model.predictor_layers = 0

    c.pretext = "contrastive"
    c.dictionary = "queue"
    c.key_encoder = "momentum"
    c.momentum_schedule = "constant"
    c.temperature = 0.2
    c.loss_scale = "none"
    c.symmetric = False
    c.shuffle_bn = True

    c.lr = 0.03
    c.lr_batch = 256
    c.lr_schedule = "cosine"
    c.lr_update = "step"
    c.optimizer = "sgd"
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-4

    c.data.source = "images"
    c.data.path = path
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.views = (recipes.v2(), recipes.v2())
    config.leave_to_data(c)  # batch, queue, momentum, length, image size ...
    if variant:
        variants.apply(c, VARIANTS, variant)
    return c
