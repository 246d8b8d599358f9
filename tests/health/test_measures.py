"""Measures of features against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.health import measures


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    return random.normal(size=(60, 20)) @ random.normal(size=(20, 20)) + 1.5


def unit(x):
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def squared_distances(x):
    return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def test_effective_rank_is_the_exponential_of_the_entropy(features):
    values = np.linalg.svd(features, compute_uv=False)
    p = values / values.sum() + 1e-7
    expected = np.exp(-np.sum(p * np.log(p)))
    for x in (features, features.T):
        found = measures.effective_rank(x.astype(np.float32))
        assert found == pytest.approx(expected, rel=1e-4)
        assert 1 < found < 20


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_equal_directions_have_their_number_as_rank(rank):
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 12)))[0][:, :rank]
    found = measures.effective_rank((basis @ np.eye(rank, 16)).astype(np.float32))
    assert found == pytest.approx(rank, rel=1e-3)


def test_zeros_have_a_finite_rank():
    assert np.isfinite(measures.effective_rank(np.zeros((8, 4), np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_have_no_rank(features, value):
    features[3, 2] = value
    assert np.isnan(measures.effective_rank(features.astype(np.float32)))


def test_spread_is_one_on_the_sphere_and_zero_where_all_are_equal(features):
    isotropic = np.random.default_rng(2).normal(size=(4000, 32))
    assert float(measures.spread(jnp.asarray(isotropic))) == pytest.approx(1, abs=0.02)
    assert float(measures.spread(jnp.ones((10, 4)))) == pytest.approx(0, abs=1e-6)
    expected = unit(features).std(axis=0).mean() * np.sqrt(20)
    assert float(measures.spread(jnp.asarray(features))) == pytest.approx(expected, rel=1e-4)


def test_units_without_differences_are_dead(features):
    features[:, [3, 7, 11, 12, 19]] = [0, 5, -1, 0, 2]
    assert float(measures.dead_units(jnp.asarray(features, jnp.float32))) == pytest.approx(5 / 20)
    assert float(measures.dead_units(jnp.ones((5, 4)))) == 1


def test_alignment_and_uniformity(features):
    one = unit(features)
    other = unit(features + 0.3 * np.random.default_rng(3).normal(size=features.shape))
    expected = ((one - other) ** 2).sum(axis=1).mean()
    found = measures.alignment(jnp.asarray(one), jnp.asarray(other))
    assert float(found) == pytest.approx(expected, rel=1e-4)
    potential = np.exp(-2 * squared_distances(one))
    pairs = potential[~np.eye(len(one), dtype=bool)]
    found = measures.uniformity(jnp.asarray(one))
    assert float(found) == pytest.approx(np.log(pairs.mean()), rel=1e-4)


def test_negatives_are_all_pairs_of_different_vectors(features):
    one = unit(features)
    found = np.sort(measures.negatives(jnp.asarray(one)))
    expected = np.sort((one @ one.T)[~np.eye(len(one), dtype=bool)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
