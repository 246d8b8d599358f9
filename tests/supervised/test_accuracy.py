"""Top-1 and top-5 hits against a sort of the scores."""

import numpy as np

from moco_jax.supervised.accuracy import counts


def test_hits_equal_those_of_a_sort():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 3, 9)).astype(np.float32)
    labels, weights = rng.integers(0, 9, 50), (rng.random(50) < 0.7).astype(np.float32)
    got = np.asarray(counts(scores, labels, weights))
    order = np.argsort(-scores, axis=-1)
    for k, sums in ((1, got[0]), (5, got[1])):
        right = (order[..., :k] == labels[:, None, None]).any(axis=-1)
        np.testing.assert_allclose(sums, (right * weights[:, None]).sum(axis=0))
    losses = np.log(np.exp(scores).sum(-1)) - scores[np.arange(50), :, labels]
    np.testing.assert_allclose(got[2], (losses * weights[:, None]).sum(axis=0), rtol=1e-5)


def test_of_equal_scores_the_first_class_ranks_higher():
    scores = np.zeros((10, 1, 10), np.float32)
    got = counts(scores, np.arange(10), np.ones(10, np.float32))
    np.testing.assert_array_equal(np.asarray(got)[:2, 0], [1, 5])


def test_scores_that_are_not_finite_are_no_hits():
    scores = np.zeros((4, 2, 3), np.float32)
    scores[:, 1] = np.nan
    got = np.asarray(counts(scores, np.zeros(4, int), np.ones(4, np.float32)))
    assert got[0].tolist() == [4, 0] and got[1].tolist() == [4, 0] and np.isnan(got[2, 1])
