"""The random masks: which patches are visible follows from the seed, the step and the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.contrastive.masks import draw
from moco_jax.models.patches import kept
from moco_jax.parallel.mesh import make_layout
from tests.tiny import tiny_config

ROWS, COLUMNS = 6, 4


def noise(indices, step=3, view=0, **changes):
    """Returns the noise f32[B, ROWS, COLUMNS] of images."""
    batch = StepIndices(jnp.asarray(step, jnp.int32), jnp.asarray(indices, jnp.int32))
    config = tiny_config(**changes)
    return np.asarray(jax.jit(lambda b: draw(config, ROWS, COLUMNS, b, view))(batch))


def visible(noise, keep):
    """Returns whether each patch bool[B, L] is among the `keep` with the least noise."""
    order = np.argsort(noise.reshape(len(noise), -1), axis=1, kind="stable")
    seen = np.zeros(order.shape, bool)
    np.put_along_axis(seen, order[:, :keep], True, axis=1)
    return seen


def test_the_noise_of_an_image_depends_on_neither_its_place_nor_the_batch():
    whole = noise(np.arange(40))
    np.testing.assert_array_equal(noise(np.arange(40)[::-1]), whole[::-1])
    np.testing.assert_array_equal(noise([39, 7, 12]), whole[[39, 7, 12]])
    np.testing.assert_array_equal(noise([5, 5]), whole[[5, 5]])  # replaces an unreadable image
    np.testing.assert_array_equal(noise([2**31 - 1, 7])[1], whole[7])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_it_is_the_same_on_any_number_of_devices(devices):
    layout = make_layout(jax.devices()[:devices])
    (indices,) = layout.put_batch((np.arange(40, dtype=np.int32),))
    config, step = tiny_config(), jnp.asarray(3, jnp.int32)
    drawn = jax.jit(lambda i: draw(config, ROWS, COLUMNS, StepIndices(step, i)))(indices)
    np.testing.assert_array_equal(jax.device_get(drawn), noise(np.arange(40)))


def test_another_image_step_seed_or_view_has_other_noise():
    first = noise(np.arange(40))
    for other in (
        noise(np.arange(40, 80)),
        noise(np.arange(40), step=4),
        noise(np.arange(40), seed=1),
        noise(np.arange(40), view=1),
    ):
        assert not np.isin(first, other).mean() > 0.01
    assert len(np.unique(first)) > 0.99 * first.size


def test_it_is_uniform_from_0_to_1():
    drawn = noise(np.arange(4000))
    assert drawn.dtype == np.float32 and drawn.min() >= 0 and drawn.max() < 1
    spread = 5 / np.sqrt(12 * len(drawn))  # five standard deviations of a mean
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=spread)
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    np.testing.assert_allclose(counts / drawn.size, 0.05, atol=5 * np.sqrt(0.05 / drawn.size))


@pytest.mark.parametrize(("fraction", "keep"), [(0.75, 6), (0.5, 12), (0.9, 2), (0.6, 9)])
def test_each_patch_is_as_often_visible_as_the_others(fraction, keep):
    assert kept(fraction, ROWS * COLUMNS) == keep
    seen = visible(noise(np.arange(4000)), keep)
    assert (seen.sum(axis=1) == keep).all()
    part = keep / (ROWS * COLUMNS)
    np.testing.assert_allclose(
        seen.mean(axis=0), part, atol=5 * np.sqrt(part * (1 - part) / len(seen))
    )


def test_neighbours_and_steps_are_independent():
    seen = visible(noise(np.arange(4000)), 6)
    later = visible(noise(np.arange(4000), step=4), 6)
    bound = 5 / np.sqrt(len(seen))
    between_steps = np.corrcoef(seen.T, later.T)[: seen.shape[1], seen.shape[1] :]
    assert np.abs(between_steps).max() < bound
    between_images = np.corrcoef(seen[:-1].T, seen[1:].T)[: seen.shape[1], seen.shape[1] :]
    assert np.abs(between_images).max() < bound
    # 6 of 24 without replacement: the correlation of two patches is -1 / 23.
    between_patches = np.corrcoef(seen.T)[~np.eye(seen.shape[1], dtype=bool)]
    np.testing.assert_allclose(between_patches, -1 / 23, atol=bound)


def test_blocks_are_masked_as_a_whole():
    drawn = noise(np.arange(4000), mask__block=2)
    blocks = drawn.reshape(-1, ROWS // 2, 2, COLUMNS // 2, 2)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    keep = kept(0.65, ROWS * COLUMNS, 2)  # 2.1 of 6 blocks
    assert keep == 8
    seen = visible(drawn, keep).reshape(blocks.shape)
    of_blocks = seen.mean(axis=(2, 4))
    assert set(np.unique(of_blocks)) == {0.0, 1.0}
    assert (of_blocks.sum(axis=(1, 2)) == 2).all()
    np.testing.assert_allclose(of_blocks.mean(axis=0), 1 / 3, atol=5 * np.sqrt(2 / 9 / 4000))


def test_the_number_of_visible_patches_is_the_papers():
    assert [kept(fraction, 196) for fraction in (0.75, 0.5, 0.6, 0.9)] == [49, 98, 78, 19]
    assert kept(0.65, 196, 2) == 68  # 17 of 49 blocks
    assert kept(0.9, 100) == 10  # 1 - .9 is a little less than .1 in binary
