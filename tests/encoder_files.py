"""Writes encoders to disk for tests."""

import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.models.encoder import make_encoder


def write_encoder(path: pathlib.Path, config: ConfigDict, *, head: bool = True) -> None:
    """Writes an encoder with random weights. NumPy draws them, since JAX would compile."""
    init = functools.partial(make_encoder(config).init, method="projection")
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)

    def values(path, leaf) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        return (0.1 * rng.normal(size=leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(values, shapes)
    if not head:
        variables = {name: {"backbone": tree["backbone"]} for name, tree in variables.items()}
    source = "a whole encoder" if head else "a backbone"
    pretrained.write(path, pretrained.Pretrained(config, variables, source))
