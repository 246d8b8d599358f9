"""The linear probe against scikit-learn, and on data that it must separate."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moco_jax.health import probe
from moco_jax.parallel.mesh import make_layout


def test_it_is_within_a_point_of_scikit_learn():
    images, labels = load_digits(return_X_y=True)
    # A random map to few features, so that not all images are separated.
    features = np.tanh(images @ np.random.default_rng(0).normal(size=(64, 24)) / 60)
    bank, queries = slice(0, 1200), slice(1200, None)
    found = probe.linear_top1(
        features[queries].astype(np.float32),
        labels[queries],
        features[bank].astype(np.float32),
        labels[bank],
        layout=make_layout(),
    )
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (probe.L2 * 1200), max_iter=2000)
    ).fit(features[bank], labels[bank])
    expected = 100 * reference.score(features[queries], labels[queries])
    assert found == pytest.approx(expected, abs=1) and 50 < expected < 99


def test_dead_units_and_classes_without_training_images_are_no_problem():
    features = np.zeros((8, 3), np.float32)
    features[:, 0] = [0, 1] * 4
    labels = np.array([0, 1] * 4)
    found = probe.linear_top1(features, labels, features, labels, make_layout())
    assert found == 100
    assert probe.linear_top1(features, labels + 1, features, labels, make_layout()) == 0
