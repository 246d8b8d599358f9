"""Momentum Contrast (MoCo) in JAX/Flax.

encoder = moco_jax.load("runs/cifar10")
features = encoder(["a.jpg", "b.jpg"])
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax.encoders.image_encoder import load as load

__version__ = "0.2.0"

# While Python looks for the module of a command, its name is not known yet.
if sys.argv and os.path.basename(sys.argv[0]) in ("-m", "moco-jax"):
    from moco_jax.terminal.signals import end_while_importing

    end_while_importing()


def __getattr__(name: str) -> Any:
    # Importing JAX takes a second, and its first use takes the devices: only `load` needs it.
    if name == "load":
        from moco_jax.encoders.image_encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
