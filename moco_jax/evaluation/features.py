"""Features of a whole data set, by an encoder in evaluation mode."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from moco_jax.data.loader import DataSet
from moco_jax.data.order import in_order
from moco_jax.mesh import Layout

_IN_FLIGHT = 2  # batches that are encoded behind the one being dispatched

Encode = Callable[[Any, jax.Array, jax.Array], jax.Array]


def make_extract(data: DataSet, encode: Encode, batch_size: int, layout: Layout):
    """Returns a function (variables, indices) -> (features f32[n, F], readable bool[n]).

    They lie on the host, whole on every process, in the order of the indices. What stood in for a
    picture that can't be read is marked as not readable.

    Args:
      data: the pictures.
      encode: (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> f32[B, F], compiled.
      batch_size: B; divides by the devices.
      layout: where arrays lie.
    """
    # Apart from `encode`, so that data sets of equal canvases share one compiled encoder.
    fetch = jax.jit(data.pictures, out_shardings=layout.sharded())
    readable = jax.jit(data.readable, out_shardings=layout.replicated)
    gather = jax.jit(lambda x: x, out_shardings=layout.replicated)

    def extract(variables: Any, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, running = [], collections.deque()
        for batch in data.batches(in_order(indices, batch_size)):
            features = encode(variables, *fetch(data.arrays, batch))
            running.append((gather(features), readable(batch)))
            if len(running) > _IN_FLIGHT:  # bounds what lies on the devices
                parts.append(jax.device_get(running.popleft()))
        parts += jax.device_get(list(running))
        features, marks = zip(*parts, strict=True)
        return np.concatenate(features)[: len(indices)], np.concatenate(marks)[: len(indices)]

    return extract
