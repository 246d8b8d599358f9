"""Label smoothing, mixup and CutMix."""

import jax
import numpy as np
import pytest

from moco_jax.supervised import mixing
from moco_jax.supervised.config import finetune


def batch(size=6, side=8):
    images = np.random.default_rng(0).normal(size=(size, side, side, 3)).astype(np.float32)
    return images, np.eye(size, dtype=np.float32)


def test_smoothing_spreads_a_fraction_over_all_classes():
    got = mixing.soften(np.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


def test_mixup_blends_images_and_targets_by_one_fraction():
    images, targets = batch()
    mixed, soft = map(np.asarray, mixing.mixup(jax.random.key(1), images, targets, 1.0))
    fraction = soft[0, 0]
    assert 0 < fraction < 1 and soft[0, 5] == pytest.approx(1 - fraction)
    np.testing.assert_allclose(mixed, fraction * images + (1 - fraction) * images[::-1], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_targets_are_in_proportion_to_the_areas(seed):
    images, targets = batch()
    mixed, soft = map(np.asarray, mixing.cutmix(jax.random.key(seed), images, targets, 1.0))
    own = (mixed == images).all(axis=-1)
    other = (mixed == images[::-1]).all(axis=-1)
    assert (own | other).all()
    np.testing.assert_allclose(own[0].mean(), soft[0, 0], atol=1e-6)
    rows, columns = np.nonzero(other[0])  # exactly one box
    if len(rows):
        assert other[0].sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_config_without_mixing_returns_the_batch():
    images, targets = batch()
    got = mixing.mix(jax.random.key(0), images, targets, finetune())
    assert got[0] is images and got[1] is targets


def test_with_mixup_and_cutmix_each_batch_gets_one_of_them():
    images, targets = batch()
    config = finetune()
    config.mixup = config.cutmix = 1.0
    cut = 0
    for seed in range(20):
        mixed, soft = map(np.asarray, mixing.mix(jax.random.key(seed), images, targets, config))
        np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
        cut += bool(((mixed == images) | (mixed == images[::-1])).all())
    assert 4 <= cut <= 16
