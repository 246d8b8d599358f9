"""Sources from arrays, and held-out fractions per class."""

import numpy as np
import pytest

from moco_jax.data.sources import source as source_lib
from moco_jax.data.sources.source import array_source, hold_out


def test_arrays():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    source = array_source(images, [1, 0], name="mine")
    np.testing.assert_array_equal(source.read(1), images[1])
    assert list(source.names) == ["mine/0", "mine/1"] and source.names[-1] == "mine/1"
    assert source.labels.tolist() == [1, 0] and source.labels.dtype == np.int32
    assert source.class_names == ("0", "1")
    assert array_source(images[..., 0]).labels is None


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, "float32; allowed: uint8.*scale"),
        (
            np.zeros((2, 3, 4, 4), np.uint8),
            None,
            r"\(2, 3, 4, 4\); allowed.*to the last axis",
        ),
        (np.zeros((4, 4), np.uint8), None, r"the shape \(4, 4\); allowed"),
        (np.zeros((0, 4, 4), np.uint8), None, "no axis may be 0"),
        (np.zeros((2, 4, 4), np.uint8), [1], r"the shape \(1,\); allowed: \(2,\)"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], "float64; allowed: integers"),
        (np.zeros((2, 4, 4), np.uint8), [0, -1], "the smallest label is -1; allowed: 0 and up"),
    ],
)
def test_invalid_arrays_are_errors(images, labels, message):
    with pytest.raises(ValueError, match=message):
        array_source(images, labels)


def labelled(sizes):
    """Returns a source with `sizes` images per class; the pixel of each image is its index."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return array_source(np.arange(len(labels), dtype=np.uint8)[:, None, None], labels)


def test_held_out_images_are_balanced_and_not_in_train():
    sources = hold_out(labelled([100, 40, 5, 2, 1]), 0.1, seed=0)
    # A tenth of each class, but at least one image of a class with two.
    assert np.bincount(sources.test.labels, minlength=5).tolist() == [10, 4, 1, 1, 0]
    assert np.bincount(sources.train.labels).tolist() == [90, 36, 4, 1, 1]
    shown = [int(s.read(i)[0, 0]) for s in (sources.train, sources.test) for i in range(len(s))]
    assert sorted(shown) == list(range(148))
    assert sources.test.names[0] == f"arrays/{sources.test.read(0)[0, 0]}"


def test_held_out_follows_the_seed():
    names = [list(hold_out(labelled([50, 50]), 0.2, seed).test.names) for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_held_out_has_a_maximum(monkeypatch):
    monkeypatch.setattr(source_lib, "MAX_HELD_OUT", 10)
    test = hold_out(labelled([60, 40]), 0.5, seed=0).test
    assert np.bincount(test.labels).tolist() == [6, 4]
    assert len(hold_out(labelled([5] * 20), 0.5, seed=0).test) == 10


def test_nothing_is_held_out():
    assert hold_out(labelled([5, 5]), 0.0, seed=0).test is None
    assert hold_out(labelled([1, 1]), 0.5, seed=0).test is None
