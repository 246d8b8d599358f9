"""Fine-tuning on other sets than the encoder was pretrained on: CIFAR-10, -100, Flowers, Pets.

The sets on which MoCo v3 (Chen et al. 2021, arXiv 2104.02057) tells transfer; the recipe is this
project's, so its numbers are no comparison. Images take the encoder's size, whatever their own.
The sets come from TFDS; `python -m moco_jax.data.prepare --name=oxford_flowers102` and the like
make them readable. Not run here.

Commands:
  python -m moco_jax.main --config=configs/transfer.py:cifar10 --config.pretrained=r50.safetensors
  python -m moco_jax.main --config=configs/transfer.py:cifar100 --config.baseline=True
  python -m moco_jax.main --config=configs/transfer.py:flowers
  python -m moco_jax.main --config=configs/transfer.py:pets
"""

from moco_jax.supervised import config

SETS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "flowers": "oxford_flowers102",
    "pets": "oxford_iiit_pet",
}


def get_config(variant: str = "cifar10"):
    if variant not in SETS:
        raise ValueError(f"configs/transfer.py:{variant} is unknown; known: {', '.join(SETS)}")
    c = config.finetune()
    c.name = f"transfer_{variant}"
    c.pretrained = "runs/imagenet_v2"
    c.epochs = 100
    c.evaluate_every = 10.0
    c.data.source = f"tfds:{SETS[variant]}"
    return c
