"""The norm of a pytree of parameters or gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.platforms import by_platform


def global_norm(tree: Any, layout: Layout) -> jax.Array:
    """Returns the L2 norm f32[] over all arrays of a tree that is split as parameters are.

    On GPUs the replicated arrays are concatenated first: a ResNet has 161 of them, and a kernel for
    each takes longer to start than to run. TPUs fuse the sum over an array with the computation of
    that array.
    """
    split, replicated = [], []
    for x in jax.tree.leaves(tree):
        (replicated if layout.parameter(x.shape).is_fully_replicated else split).append(x)
    norms = [optax.tree.norm(x) for x in split]
    if replicated:
        norms.append(by_platform(*replicated, default=_separate, gpu=_concatenated))
    return optax.tree.norm(norms)


def _separate(*arrays: jax.Array) -> jax.Array:
    return optax.tree.norm(list(arrays))


def _concatenated(*arrays: jax.Array) -> jax.Array:
    return jnp.linalg.norm(jnp.concatenate([x.ravel() for x in arrays]))
