"""Host memory returns to the pool when nothing refers to it."""

import numpy as np

from moco_jax.data.loading.buffers import Buffers
from moco_jax.parallel.mesh import make_layout


def test_memory_without_references_is_reused():
    buffers = Buffers()
    first = buffers.take((8, 4, 4, 3))
    place, view = first.ctypes.data, first[2:3, 1:]
    assert first.shape == (8, 4, 4, 3) and first.dtype == np.uint8 and place % 64 == 0
    del first
    assert buffers.take((8, 4, 4, 3)).ctypes.data != place  # a view still refers to it
    del view
    assert place in {buffers.take((8, 4, 4, 3)).ctypes.data for _ in range(2)}
    assert buffers.allocated == 2


def test_memory_of_a_device_array_is_not_reused():
    buffers, layout = Buffers(), make_layout()
    arrays = []
    for level in range(3):
        batch = buffers.take((8, 16, 16, 3))
        batch[:] = level
        arrays.append(layout.put_batch(batch))
        del batch
    for level, array in enumerate(arrays):
        assert (np.asarray(array) == level).all()
    assert buffers.allocated == 3
    del array, arrays
    layout.put_batch(np.zeros(8))  # JAX drops its references in one of the next calls
    again = [buffers.take((8, 16, 16, 3)) for _ in range(3)]
    assert buffers.allocated == 3 and len(again) == 3
