"""Momentum Contrast (MoCo) in JAX/Flax.

encoder = moco_jax.load("runs/cifar10")
features = encoder(["a.jpg", "b.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax.encoders.image_encoder import load as load

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Importing JAX takes a second, and its first use takes the devices: only `load` needs it.
    if name == "load":
        from moco_jax.encoders.image_encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
