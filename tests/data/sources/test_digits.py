"""Digits are a constant data set; raw pixels separate its classes badly."""

import subprocess
import sys
import zlib

import numpy as np
import pytest

from moco_jax.data.sources import digits as digits_lib
from moco_jax.data.sources.digits import digits


@pytest.fixture(scope="module")
def train():
    return digits("train")


@pytest.fixture(scope="module")
def test():
    return digits("test")


def test_shapes_and_classes(train, test):
    for (images, labels), per_class in [
        (train, [592, 608, 588, 612, 604, 608, 604, 596, 576, 600]),
        (test, [120] * 10),
    ]:
        assert images.shape == (sum(per_class), 32, 32, 3) and images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert np.bincount(labels).tolist() == per_class


def test_bytes_are_constant(train, test):
    assert zlib.crc32(train[0].tobytes()) == 2312433564
    assert zlib.crc32(test[0].tobytes()) == 771115440
    assert train[1][:10].tolist() == [6, 3, 5, 5, 1, 1, 3, 5, 5, 4]
    assert test[1][:10].tolist() == [4, 8, 5, 6, 0, 2, 7, 6, 2, 0]


def test_file_of_scikit_learn_holds_what_its_own_function_returns(monkeypatch):
    read = digits_lib._handwritten.__wrapped__
    pixels, labels = read()
    monkeypatch.setattr(digits_lib, "_FILE", "absent")
    for mine, theirs in zip((pixels, labels), read(), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_digits_need_no_import_of_scikit_learn():
    program = "import sys; from moco_jax.data.sources import digits; digits.digits('test')"
    program += "; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_digit_is_in_both_splits():
    _, labels = digits_lib._handwritten()
    split = digits_lib._split_indices(labels)
    assert len(split["train"]) == 1497 and len(split["test"]) == 300
    assert sorted([*split["train"], *split["test"]]) == list(range(1797))


def test_every_image_differs_and_has_contrast(train):
    images, _ = train
    assert len({image.tobytes() for image in images}) == len(images)
    luma = images @ np.array([0.299, 0.587, 0.114], np.float32)
    assert (luma.max((1, 2)) - luma.min((1, 2))).min() > 70


def test_raw_pixels_classify_badly(train, test):
    # The kNN monitor on pixels: 200 neighbours by cosine, votes weighted by exp(cosine / 0.1).
    train_rows, test_rows = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (
            images.reshape(len(images), -1).astype(np.float32) for images, _ in (train, test)
        )
    )
    cosine = test_rows @ train_rows.T
    nearest = np.argpartition(-cosine, 200, axis=1)[:, :200]
    weights = np.exp(np.take_along_axis(cosine, nearest, 1) / 0.1)
    votes = [(weights * (train[1][nearest] == label)).sum(1) for label in range(10)]
    accuracy = (np.argmax(votes, axis=0) == test[1]).mean()
    assert 0.3 < accuracy < 0.42  # chance is .1, a person reads nearly all


def test_unknown_split():
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, test"):
        digits("val")
