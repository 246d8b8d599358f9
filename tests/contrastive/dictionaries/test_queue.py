import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.contrastive.dictionaries.queue import Queue
from moco_jax.parallel.mesh import make_layout
from tests.tiny import tiny_config


def make_queue(size: int, keys_per_step: int, dim: int) -> Queue:
    config = tiny_config(queue_size=size, batch_size=keys_per_step, model__dim=dim)
    return Queue(config, make_layout(jax.devices()[:1]))


def test_starts_with_random_unit_vectors():
    ring = make_queue(size=64, keys_per_step=16, dim=8).init(jax.random.key(0))
    assert ring.shape == (4, 16, 8)
    np.testing.assert_allclose(jnp.linalg.norm(ring, axis=-1), 1, rtol=1e-5)
    assert abs(float(ring.mean())) < 0.05


def test_first_in_first_out():
    queue = make_queue(size=6, keys_per_step=2, dim=1)
    ring = queue.init(jax.random.key(0))
    for step in range(5):
        batch = StepIndices(jnp.int32(step), jnp.arange(2))
        ring = queue.update(ring, jnp.full((2, 1), float(step)), batch)
    # Steps 0 and 1 were overwritten by 3 and 4.
    np.testing.assert_array_equal(ring[:, :, 0], [[3, 3], [4, 4], [2, 2]])


def test_a_queue_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="queue_size=100 must be a multiple of the 16 keys"):
        make_queue(size=100, keys_per_step=16, dim=8).init(jax.random.key(0))
