"""The norm of a pytree of parameters or gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.platforms import by_platform


def global_norm(tree: Any, layout: Layout) -> jax.Array:
    """Returns the L2 norm f32[] over all arrays of a tree laid out as parameters are.

    For GPUs the arrays that lie whole on each are joined first: a ResNet has 161 of them, and a
    kernel for each would take longer to start than to run. TPUs fuse each array's sum with what
    makes the array.
    """
    split, whole = [], []
    for x in jax.tree.leaves(tree):
        (whole if layout.parameter(x.shape).is_fully_replicated else split).append(x)
    norms = [optax.tree.norm(x) for x in split]
    if whole:
        norms.append(by_platform(*whole, default=_apart, gpu=_joined))
    return optax.tree.norm(norms)


def _apart(*arrays: jax.Array) -> jax.Array:
    return optax.tree.norm(list(arrays))


def _joined(*arrays: jax.Array) -> jax.Array:
    return jnp.linalg.norm(jnp.concatenate([x.ravel() for x in arrays]))
