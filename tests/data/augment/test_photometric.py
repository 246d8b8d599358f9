"""Random operations: probabilities, independence and parameters of the draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from moco_jax.data.augment import photometric
from moco_jax.data.augment.blur import gaussian_blur

COUNT = 4000
PARAMETERS = {
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grayscale": {},
    "solarize": {"threshold": 128},
    "blur": {"sigma": (0.5, 2.0)},
    "flip": {},
}
# Not here: an operation of RandAugment may change nothing (test_random_operations.py).
OPS = {name: op for name, op in photometric.OPS.items() if name != "rand_augment"}


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (COUNT, 4, 3, 4), np.uint8))


def changed(before, after):
    return np.any(np.asarray(before != after), axis=(1, 2, 3))


def test_all_ops_are_tested():
    assert set(PARAMETERS) == set(OPS)


@pytest.mark.parametrize("name", list(OPS))
def test_p_is_the_fraction_of_changed_images(noise, name):
    op = partial(photometric.OPS[name], **PARAMETERS[name])
    key = jax.random.key(1)
    some = changed(noise, jax.jit(partial(op, p=0.3))(key, noise))
    # Three standard deviations of a fraction of 4,000.
    assert abs(some.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / COUNT)
    assert not changed(noise, op(key, noise, p=0.0)).any()
    assert changed(noise, jax.jit(partial(op, p=1.0))(key, noise)).mean() > 0.999


def test_flip_mirrors_left_and_right(noise):
    flipped = photometric.flip(jax.random.key(0), noise[:2], p=1.0)
    np.testing.assert_array_equal(flipped[1, 3, :, 0], noise[1, 3, :, 3])


def test_choice_and_parameters_are_independent():
    # One bright pixel: its level after the blur depends on sigma.
    images = jnp.zeros((COUNT, 9, 3, 9), jnp.uint8).at[:, 4, :, 4].set(255)
    op = partial(photometric.blur, sigma=(0.1, 2.0), p=0.5)
    blurred = jax.jit(op)(jax.random.key(0), images)
    left = np.asarray(blurred)[:, 4, 0, 4]
    strong, any_blur = (left < 60).sum(), (left < 255).sum()
    # A level below 60 means sigma > .84: 61 % of the blurred images, independent of p.
    assert 0.5 < strong / any_blur < 0.7


def test_sigmas_are_uniform():
    images = np.zeros((COUNT, 17, 3, 17), np.uint8)
    images[:, 8, :, 8] = 255
    sigmas = np.random.default_rng(0).uniform(0.5, 2.0, COUNT).astype(np.float32)
    left = [
        np.asarray(blurred)[:, 8, 0, 8]
        for blurred in (
            jax.jit(partial(photometric.blur, sigma=(0.5, 2.0)))(jax.random.key(0), images),
            jax.jit(gaussian_blur)(images, sigmas),
        )
    ]
    assert len(np.unique(left[1])) > 50  # the level in the middle depends on sigma
    assert stats.ks_2samp(*left).pvalue > 0.01
