"""L-BFGS against scikit-learn's LogisticRegression: same objective, same minimum."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moco_jax.encoders.logistic import fit
from moco_jax.parallel.mesh import make_layout

CLASSES = 5


def data(size: int, seed: int):
    centres = np.random.default_rng(9).normal(size=(CLASSES, 12))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size)
    features = 0.4 * (centres[labels] + 1.5 * rng.normal(size=(size, 12)))
    return features.astype(np.float32), labels.astype(np.int32)


def fitted(l2: float, devices: int = 8, **changes):
    features, labels = data(403, 0)  # not a multiple of the devices
    settings = dict(classes=CLASSES, l2=l2, iterations=500, tolerance=1e-5) | changes
    layout = make_layout(jax.devices()[:devices])
    return fit(features, labels, layout=layout, **settings)


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_it_agrees_with_scikit_learn(l2):
    features, labels = data(403, 0)
    theirs = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-7, max_iter=5000)
    theirs.fit(features.astype(np.float64), labels)
    ours = fitted(l2)
    assert ours.converged and ours.gradient <= 1e-5
    # Softmax is invariant to a constant in the bias: compare differences between classes.
    centred = ours.bias - ours.bias.mean()
    np.testing.assert_allclose(centred, theirs.intercept_ - theirs.intercept_.mean(), atol=0.02)
    np.testing.assert_allclose(ours.kernel, theirs.coef_.T, atol=0.02 * np.abs(theirs.coef_).max())
    test, truth = data(2000, 1)
    accuracy = 100 * ((test @ ours.kernel + ours.bias).argmax(1) == truth).mean()
    assert 50 < accuracy < 99  # neither trivial nor impossible
    assert accuracy == pytest.approx(100 * theirs.score(test, truth), abs=0.5)


def test_result_does_not_depend_on_the_number_of_devices():
    one, eight = fitted(1e-2, devices=1), fitted(1e-2)
    np.testing.assert_allclose(one.kernel, eight.kernel, atol=1e-3)


def test_fit_with_few_iterations_is_not_converged():
    found = fitted(1e-4, iterations=2)
    assert not found.converged and found.iterations == 2 and found.gradient > 1e-5
