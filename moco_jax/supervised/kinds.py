"""The kinds of checkpoints that supervised tasks write."""

from moco_jax.training.checkpoints import Kind

_IMAGES = ("data.source", "data.path", "data.train_split", "data.held_out")
_STRUCTURE = ("model.", "pretrained", "from_scratch", "label_", "ema", *_IMAGES)

KINDS = {
    "linear": Kind("moco_jax.linear", (*_STRUCTURE, "lr"), results=("top1",)),
    "finetune": Kind("moco_jax.finetune", _STRUCTURE, results=("top1",)),
}
