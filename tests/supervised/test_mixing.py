"""Label smoothing, mixup and CutMix."""

import jax
import numpy as np
import pytest
from scipy import stats

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


def reference_fraction(rng, size: int) -> float:
    """Returns the fraction of an image that stays, as timm's `rand_bbox` with `correct_lam`."""
    side = int(size * np.sqrt(1 - rng.beta(1.0, 1.0)))
    (top, left), half = rng.integers(size, size=2), side // 2
    height = np.clip(top + half, 0, size) - np.clip(top - half, 0, size)
    width = np.clip(left + half, 0, size) - np.clip(left - half, 0, size)
    return 1 - height * width / size**2


def test_fractions_have_the_distribution_of_timm():
    """Mixup's is Beta(.8, .8); CutMix's is that of the box inside the image."""
    size, count = 64, 3000
    images, targets = np.zeros((2, size, size, 1), np.float32), np.eye(2, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), count)
    found = {}
    for way, alpha in ((mixing.mixup, 0.8), (mixing.cutmix, 1.0)):
        own = jax.jit(lambda key, way=way, alpha=alpha: way(key, images, targets, alpha)[1][0, 0])
        found[way] = np.asarray(jax.lax.map(own, keys))
    assert stats.kstest(found[mixing.mixup], stats.beta(0.8, 0.8).cdf).pvalue > 0.001
    rng = np.random.default_rng(0)
    expected = [reference_fraction(rng, size) for _ in range(count)]
    levels = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(found[mixing.cutmix], levels), np.quantile(expected, levels), atol=0.05
    )


def test_smoothed_targets_are_mixed_as_timms():
    """timm: lam on the smoothed target of the image, 1 - lam on that of its partner."""
    config = finetune()
    config.mixup = 0.8
    images, labels = batch(4)[0], np.array([0, 1, 2, 2])
    soft = mixing.soften(labels, 3, 0.1)
    mixed, targets = mixing.mix(jax.random.key(2), images, soft, config)
    lam = float(np.ravel((mixed - images[::-1]) / (images - images[::-1]))[0])
    on, off = 0.9 + 0.1 / 3, 0.1 / 3
    expected = np.full((4, 3), off)
    for i, (own, other) in enumerate(zip(labels, labels[::-1], strict=True)):
        expected[i, own] += lam * (on - off)
        expected[i, other] += (1 - lam) * (on - off)
    np.testing.assert_allclose(targets, expected, atol=1e-5)
