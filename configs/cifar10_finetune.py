"""Fine-tuning on CIFAR-10 with all labels, a tenth or a hundredth of them; and from scratch.

For the encoder that configs/cifar10.py pretrains. No paper's recipe; not run here to its end.

Commands:
  python -m moco_jax.main --config=configs/cifar10_finetune.py --config.data.path=cifar10.tar.gz
  python -m moco_jax.main --config=configs/cifar10_finetune.py:10percent
  python -m moco_jax.main --config=configs/cifar10_finetune.py:1percent
"""

from moco_jax.supervised import config

# variant: fraction of the labels, epochs
VARIANTS = {"full": (1.0, 50), "10percent": (0.1, 200), "1percent": (0.01, 500)}


def get_config(variant: str = "full"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/cifar10_finetune.py:{variant}: known: {', '.join(VARIANTS)}")
    c = config.finetune()
    c.name = f"cifar10_finetune_{variant}"
    c.pretrained = "runs/cifar10_asymmetric"
    c.baseline = True
    c.label_fraction, c.epochs = VARIANTS[variant]
    c.evaluate_every = c.epochs / 10
    c.data.source = "tfds:cifar10"
    return c
