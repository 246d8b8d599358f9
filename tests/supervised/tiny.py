"""Supervised configs and an encoder small enough to run in seconds."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.models.encoder import make_encoder
from moco_jax.supervised.config import BASES
from tests.tiny import tiny_config

FAST = {"xla_backend_optimization_level": 0}  # for programs that run once


def task_config(task: str, encoder="", **changes) -> ConfigDict:
    """Returns a config of 6 steps, 3 an epoch; `changes` by key, nested as `data__canvas=16`."""
    c = BASES[task]()
    c.update_from_flattened_dict(
        {
            "name": f"tiny_{task}",
            "pretrained": str(encoder),
            "epochs": None,
            "steps": 6,
            "batch_size": 32,
            "lr_batch": 32,
            "lr_schedule": "constant",
            "log_every": 1,
            "checkpoint_every": 2,
            "evaluate_every": 1.0,
            "data.source": "digits",
        }
    )
    changes = {"lr": (1.0,) if task == "linear" else 0.03} | changes
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@functools.cache
def encoder_variables() -> dict:
    """Returns random parameters, and running averages that differ from the initial ones."""
    encoder = make_encoder(tiny_config())
    images = np.zeros((8, 8, 8, 3), np.float32)
    variables = jax.device_get(
        jax.jit(encoder.init, compiler_options=FAST)(jax.random.key(3), images)
    )
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda x: x + rng.uniform(0, 0.2, x.shape).astype(np.float32), variables["batch_stats"]
    )
    return {"params": variables["params"], "batch_stats": stats}


def write_encoder(path, source: str = "a tiny one", scale: float = 1.0) -> str:
    """Writes a tiny encoder, its arrays scaled; returns its path."""
    variables = jax.tree.map(lambda x: x * np.float32(scale), encoder_variables())
    pretrained.write(path, pretrained.Pretrained(tiny_config(), variables, source))
    return str(path)
