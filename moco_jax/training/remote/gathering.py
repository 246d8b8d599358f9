"""A state between the devices of several processes and process 0, which alone has the files."""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from moco_jax.parallel import cluster


def gathered(state: Any) -> Any:
    """Returns a state of device arrays as whole host arrays on process 0, None on the others."""
    whole = jax.tree.map(_whole, state)
    return whole if cluster.is_first() else None


def _whole(x: jax.Array) -> np.ndarray | None:
    if not x.is_fully_replicated:
        assert isinstance(x.sharding, NamedSharding)
        x = _replicate(x.sharding.mesh)(x)
    return np.array(x.addressable_data(0)) if cluster.is_first() else None


@functools.cache
def _replicate(mesh: Any) -> Any:
    """Returns jitted: an array on a mesh -> the same on every device."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def received(x: np.ndarray | None, like: Any) -> np.ndarray:
    """Returns process 0's host array on all processes, bit for bit.

    Args:
      x: the array on process 0; not used on the others.
      like: has its shape and dtype.
    """
    size = int(np.prod(like.shape)) * np.dtype(like.dtype).itemsize
    if not size:
        return np.zeros(like.shape, like.dtype)
    data = np.zeros(size, np.uint8)
    if cluster.is_first():
        data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    # As bytes: JAX sums what the processes have, and -0. + 0. is 0.
    data = np.array(multihost_utils.broadcast_one_to_all(data))
    return data.view(like.dtype).reshape(like.shape)
