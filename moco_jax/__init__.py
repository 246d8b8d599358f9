"""Momentum Contrast (MoCo) in JAX/Flax.

config = moco_jax.configs.digits.get_config()
encoder = moco_jax.pretrain(config, "runs/digits")    # or moco_jax.load("runs/digits")
features = encoder(["a.jpg", "b.jpg"])

`python -m moco_jax` lists the commands.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax import configs as configs
    from moco_jax.api import embed as embed
    from moco_jax.api import evaluate as evaluate
    from moco_jax.api import pretrain as pretrain
    from moco_jax.api import report as report
    from moco_jax.encoders.image_encoder import load as load

__version__ = "0.2.0"

# While Python looks for the module of a command, its name is not known yet.
if sys.argv and os.path.basename(sys.argv[0]) in ("-m", "moco-jax"):
    from moco_jax.terminal.signals import end_while_importing

    end_while_importing()

# Importing JAX takes a second, and its first use takes the devices: only these functions need it.
# `moco_jax.embed` and `moco_jax.report` are functions. The modules of the commands have the same
# names, and nothing but `python -m moco_jax.embed` loads them.
_FUNCTIONS = {
    "load": "moco_jax.encoders.image_encoder",
    "pretrain": "moco_jax.api",
    "evaluate": "moco_jax.api",
    "embed": "moco_jax.api",
    "report": "moco_jax.api",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name == "configs":
        return importlib.import_module("moco_jax.configs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_FUNCTIONS, "configs"]
