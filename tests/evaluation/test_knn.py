import jax
import numpy as np
import pytest

from moco_jax.evaluation.knn import knn_top1
from moco_jax.mesh import make_layout


def reference(queries, truth, bank, labels, k, temperature):
    """Weighted kNN, one query at a time."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    correct = 0
    for q, y in zip(unit(queries), truth, strict=True):
        similarity = unit(bank) @ q
        nearest = np.argsort(-similarity)[:k]
        votes = np.zeros(labels.max() + 1)
        np.add.at(votes, labels[nearest], np.exp(similarity[nearest] / temperature))
        correct += votes.argmax() == y
    return 100 * correct / len(truth)


@pytest.mark.parametrize(("k", "devices"), [(1, 1), (20, 1), (20, 8), (500, 8)])
def test_agrees_with_one_query_at_a_time(k, devices):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 12))
    labels, truth = rng.integers(0, 5, 203), rng.integers(0, 5, 77)
    bank = (centres[labels] + 1.5 * rng.normal(size=(203, 12))).astype(np.float32)
    queries = (centres[truth] + 1.5 * rng.normal(size=(77, 12))).astype(np.float32)
    got = knn_top1(
        queries,
        truth,
        bank,
        labels,
        k=k,
        temperature=0.1,
        layout=make_layout(jax.devices()[:devices]),
    )
    assert got == pytest.approx(reference(queries, truth, bank, labels, min(k, 203), 0.1))
    assert 40 < got < 100
