"""Neighbours against a search in NumPy, on vectors whose cosines are exact."""

import jax
import numpy as np
import pytest

from moco_jax.encoders import neighbours
from moco_jax.encoders.neighbours import near_duplicates, nearest
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import collectives


@pytest.fixture(params=[1, 8])
def layout(request):
    return make_layout(jax.devices()[: request.param])


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets blocks of at most 7 rows, and parts of 2 blocks a device."""
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(neighbours, "_PART_BYTES", 2 * 7 * 16 * 4)
    monkeypatch.setattr(neighbours, "_QUERY_BATCH", 8)


def corners(count, seed):
    """Returns f32[count, 16] of +-3: the cosines are multiples of 1/8, and many are equal."""
    return 3 * np.random.default_rng(seed).choice(np.float32([-1, 1]), (count, 16))


def reference(queries, bank, k, among="all", own=None):
    """Returns cosines and indices [M, k] by a stable sort of all cosines."""
    cosines = (queries @ bank.T / 144).astype(np.float32)
    for row, cosine in enumerate(cosines):
        if among == "others":
            cosine[own[row]] = -np.inf
        if among == "later":
            cosine[: own[row] + 1] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1), order


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("among", neighbours.AMONG)
def test_equal_to_a_stable_sort_of_all_cosines(small_blocks, layout, among, k):
    bank = corners(203, 0)
    own = None if among == "all" else np.arange(0, 200, 10)
    queries = corners(20, 1) if own is None else bank[own]
    got = nearest(queries, bank, k=k, layout=layout, own=own, among=among)
    expected = reference(queries, bank, k, among, own)
    np.testing.assert_array_equal(got[0], expected[0])
    there = np.isfinite(expected[0])
    np.testing.assert_array_equal(got[1][there], expected[1][there])
    ties = expected[0][:, 1:] == expected[0][:, :-1]
    assert ties.any() or k == 1
    assert not there.all() if among == "later" and k == 60 else there.all()


def test_one_block_gives_the_same(layout):
    bank, queries = corners(203, 0), corners(20, 1)
    got = nearest(queries, bank, k=5, layout=layout)
    np.testing.assert_array_equal(got, reference(queries, bank, 5))


@pytest.mark.parametrize("threshold", [0.75, 1.0])
def test_each_pair_above_a_cosine_comes_once(small_blocks, layout, threshold):
    features = corners(90, 2)
    features[10:60] = features[3]  # more duplicates than the first search returns
    first, second, cosine = (
        np.concatenate(part)
        for part in zip(*near_duplicates(features, threshold, layout))  # noqa: B905
    )
    cosines = features @ features.T / 144
    expected = np.argwhere(np.triu(cosines >= threshold, 1))
    order = np.lexsort([second, first])
    np.testing.assert_array_equal(np.stack([first, second], axis=1)[order], expected)
    np.testing.assert_array_equal(cosine, cosines[first, second])
    assert len(expected) >= 51 * 50 / 2


def test_devices_exchange_only_their_nearest_rows(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 128)
    layout, bank = make_layout(), corners(8 * 512, 3)
    [(start, part)] = neighbours._parts(bank, layout)
    assert part.shape == (4, 8, 128, 16) and part.addressable_shards[0].data.shape[1] == 1
    block = layout.put(
        [
            corners(32, 4),
            np.zeros(32, np.int32),
            np.zeros((32, 5), np.float32),
            np.zeros((32, 5), np.int32),
        ],
        layout.replicated,
    )
    compiled = neighbours._search.lower(
        *block, part, start, len(bank), among="all", layout=layout
    ).compile()
    moved = collectives.collectives(compiled.as_text())
    assert moved and max(c.bytes for c in moved) <= 8 * 32 * 5 * 4


def test_errors_name_the_argument():
    layout, x = make_layout(), corners(4, 0)
    with pytest.raises(ValueError, match=r"queries \(4, 16\) and bank \(4, 8\)"):
        nearest(x, x[:, :8], k=1, layout=layout)
    with pytest.raises(ValueError, match="must have at least one row; got 4 and 0"):
        nearest(x, x[:0], k=1, layout=layout)
    with pytest.raises(ValueError, match="among='late' is unknown; allowed: all, others, later"):
        nearest(x, x, k=1, layout=layout, own=np.arange(4), among="late")
    with pytest.raises(ValueError, match=r"among='others' needs own=i32\[M\]"):
        nearest(x, x, k=1, layout=layout, among="others")
    with pytest.raises(ValueError, match="among='all' needs own=None"):
        nearest(x, x, k=1, layout=layout, own=np.arange(4))
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        nearest(x, x, k=0, layout=layout)
