"""Sources from arrays, held-out fractions per class, and the identity of images."""

import dataclasses
import time

import numpy as np
import pytest

from moco_jax.data.sources import source as source_lib
from moco_jax.data.sources.source import Source, array_source, fingerprint, hold_out, take
from tests.data.sources.stores import SPLIT_PATHS, open_images, write_folder, write_tar


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


def files(names, contents=None, labels=None, class_names=()):
    """Returns a source of files; the bytes of each are its name unless others are given."""
    read = (contents or [name.rpartition("/")[2].encode() for name in names]).__getitem__
    return Source("files", read, names, labels, class_names)


def test_fingerprint_ignores_the_place_of_the_images():
    names = ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    here, there = files(["/x/y/" + n for n in names]), files(["/scratch/job7/" + n for n in names])
    assert fingerprint(here) == fingerprint(there) == fingerprint(files(names))
    assert len(fingerprint(here)) == 32


def test_fingerprint_of_a_folder_equals_that_of_an_archive(tmp_path):
    folder = open_images(write_folder(tmp_path / "data", SPLIT_PATHS))
    archive = open_images(write_tar(tmp_path / "data.tar.gz", SPLIT_PATHS, "gz"))
    assert fingerprint(folder.train) == fingerprint(archive.train)
    assert fingerprint(folder.test) == fingerprint(archive.test) != fingerprint(folder.train)


def test_fingerprint_covers_names_order_labels_classes_and_bytes():
    names, labels = ["a/1.jpg", "a/2.jpg", "b/3.jpg"], np.int32([0, 0, 1])
    sources = [
        files(names),
        files(names, labels=labels, class_names=("a", "b")),
        files(names, labels=labels, class_names=("a", "c")),
        files(names, labels=1 - labels, class_names=("a", "b")),
        files(names[::-1]),
        files(names[:2]),
        files(["a/1.jpg", "a/2.jpg", "b/4.jpg"], contents=[b"1.jpg", b"2.jpg", b"3.jpg"]),
        files(names, contents=[b"1.jpg", b"2.jpg", b"other"]),
        array_source(np.zeros((3, 2, 2), np.uint8)),
        array_source(np.zeros((3, 1, 4), np.uint8)),
        array_source(np.ones((3, 2, 2), np.uint8)),
        array_source(np.ones((4, 2, 2), np.uint8)),
    ]
    assert len({fingerprint(source) for source in sources}) == len(sources)
    assert fingerprint(take(sources[1], np.arange(3), "other name")) == fingerprint(sources[1])


def test_fingerprint_of_arrays_ignores_their_name():
    images = np.arange(40, dtype=np.uint8)[:, None, None]
    assert fingerprint(array_source(images, name="a")) == fingerprint(array_source(images))
    held_out = [hold_out(array_source(images, images[:, 0, 0] % 2, n), 0.5, 0) for n in "ab"]
    assert fingerprint(held_out[0].train) == fingerprint(held_out[1].train)


def test_fingerprint_counts_an_unreadable_image():
    def read(index):
        raise OSError("gone")

    names = [f"{i}.jpg" for i in range(3)]
    whole = files(names)
    assert fingerprint(Source("x", read, names, None, ())) != fingerprint(whole)


def test_fingerprint_of_names_in_another_unicode_form():
    composed, decomposed = files(["caf\u00e9.jpg", "z"]), files(["cafe\u0301.jpg", "z"])
    same = [dataclasses.replace(x, read=lambda i: b"x") for x in (composed, decomposed)]
    assert fingerprint(same[0]) == fingerprint(same[1])
    foreign = dataclasses.replace(same[0], names=["caf\udce9.jpg", "z"])  # Latin-1 bytes
    assert fingerprint(foreign) != fingerprint(same[0])


def test_fingerprint_of_many_names_is_quick():
    names = [f"/data/train/n{i % 1000:08}/n{i}_image.JPEG" for i in range(1_300_000)]
    source = Source("x", lambda i: b"x", names, np.zeros(len(names), np.int32), ("a",))
    start = time.monotonic()
    fingerprint(source)
    assert time.monotonic() - start < 60  # about a second
