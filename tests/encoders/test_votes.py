"""kNN votes against one query at a time and against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from moco_jax.encoders import votes
from moco_jax.encoders.votes import knn_table, knn_top1, leave_one_out_table
from moco_jax.parallel.mesh import make_layout


def reference(queries, truth, bank, labels, k, temperature):
    """Returns top-1 in percent, one query at a time."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    correct = 0
    for q, y in zip(unit(queries), truth, strict=True):
        similarity = unit(bank) @ q
        nearest = np.argsort(-similarity)[:k]
        of_classes = np.zeros(labels.max() + 1)
        np.add.at(of_classes, labels[nearest], np.exp(similarity[nearest] / temperature))
        correct += of_classes.argmax() == y
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


def blobs(rows, seed):
    """Returns features f32[rows, 12] of 5 classes that overlap, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows).astype(np.int32)
    centres = np.random.default_rng(9).normal(size=(5, 12))
    return (centres[labels] + 1.5 * rng.normal(size=(rows, 12))).astype(np.float32), labels


KS, TEMPERATURES = (20, 1, 500), (0.07, 0.5)


def test_table_has_every_k_and_temperature():
    (bank, labels), (queries, truth) = blobs(203, 0), blobs(77, 1)
    got = knn_table(
        queries, truth, bank, labels, ks=KS, temperatures=TEMPERATURES, layout=make_layout()
    )
    expected = [
        [reference(queries, truth, bank, labels, min(k, 203), t) for t in TEMPERATURES] for k in KS
    ]
    np.testing.assert_allclose(got, expected)
    assert len(np.unique(got)) > 3


def test_agrees_with_scikit_learn():
    (bank, labels), (queries, truth) = blobs(203, 0), blobs(77, 1)
    for k in (3, 20):
        theirs = KNeighborsClassifier(
            k, weights=lambda d: np.exp((1 - d) / 0.1), metric="cosine", algorithm="brute"
        ).fit(bank, labels)
        got = knn_top1(queries, truth, bank, labels, k=k, temperature=0.1, layout=make_layout())
        assert got == pytest.approx(100 * theirs.score(queries, truth))


def test_leave_one_out_uses_all_other_rows():
    x, labels = blobs(60, 2)
    got = leave_one_out_table(x, labels, ks=(1, 7, 200), temperatures=(0.1,), layout=make_layout())
    for row, k in enumerate((1, 7, 59)):
        right = [
            reference(
                x[i : i + 1], labels[i : i + 1], np.delete(x, i, 0), np.delete(labels, i), k, 0.1
            )
            for i in range(60)
        ]
        assert got[row, 0] == pytest.approx(np.mean(right))
    with pytest.raises(ValueError, match="leave-one-out needs 2 or more images, got 1"):
        leave_one_out_table(x[:1], labels[:1], ks=(1,), temperatures=(1,), layout=make_layout())


def test_ties_go_to_the_lower_index_and_the_lower_label():
    a, b = np.float32([[1, 0]]), np.float32([[0, 1]])
    classify = lambda truth, labels, k: knn_top1(  # noqa: E731
        a, np.int32([truth]), np.concatenate([b, a, a, a]), np.int32(labels), k=k, temperature=0.1,
        layout=make_layout(),
    )  # fmt: skip
    assert classify(2, [0, 2, 1, 1], 1) == 100  # of three equally near rows the first
    assert classify(1, [0, 2, 1, 3], 2) == 100  # one vote each for 2 and 1
    assert classify(1, [0, 2, 1, 1], 3) == 100


def test_a_small_temperature_does_not_overflow():
    (bank, labels), (queries, truth) = blobs(203, 0), blobs(77, 1)
    got = [
        knn_top1(queries, truth, bank, labels, k=k, temperature=t, layout=make_layout())
        for k, t in ((1, 1.0), (50, 1e-4))
    ]
    assert got[0] == got[1]  # only the nearest row decides


def test_votes_are_counted_in_several_parts(monkeypatch):
    monkeypatch.setattr(votes, "_VOTES_AT_ONCE", 30)
    test_agrees_with_one_query_at_a_time(20, 1)
