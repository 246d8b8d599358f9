import jax
import numpy as np
import pytest

from moco_jax.contrastive import shuffle
from moco_jax.parallel.mesh import make_layout


@pytest.mark.parametrize(("batch", "groups", "devices"), [(64, 8, 8), (64, 8, 1), (24, 4, 2)])
def test_each_group_mixes_all_groups_and_comes_back(batch, groups, devices):
    layout = make_layout(jax.devices()[:devices])
    x = layout.put_batch(np.arange(batch, dtype=np.int32))
    mixed = jax.jit(lambda x: shuffle.shuffle(x, groups, layout))(x)
    size = batch // groups
    origins = np.asarray(mixed).reshape(groups, size) // size
    expected = min(groups, size)
    assert all(len(set(row)) == expected for row in origins)
    back = jax.jit(lambda x: shuffle.unshuffle(x, groups, layout))(mixed)
    np.testing.assert_array_equal(back, np.arange(batch))


def test_one_group_changes_nothing():
    layout = make_layout(jax.devices()[:1])
    np.testing.assert_array_equal(
        jax.jit(lambda x: shuffle.shuffle(x, 1, layout))(np.arange(8)), np.arange(8)
    )
