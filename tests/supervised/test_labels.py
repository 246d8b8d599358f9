"""Selects labelled images by a fraction or by a list."""

import os

import numpy as np
import pytest

from moco_jax.data.sources.source import Source
from moco_jax.supervised.labels import draw, labelled
from tests.supervised.tiny import task_config


def source(labels) -> Source:
    names = [f"train/{label}/{i}.JPEG" for i, label in enumerate(labels)]
    classes = tuple(str(i) for i in range(max(labels) + 1))
    return Source("images", lambda i: i, names, np.asarray(labels, np.int32), classes)


def test_fraction_is_drawn_from_each_class():
    labels = np.repeat([0, 1, 2], [200, 100, 3])
    chosen = draw(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 1]
    assert len(set(chosen)) == 31 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, draw(labels, 0.1, seed=0))
    assert not np.array_equal(chosen, draw(labels, 0.1, seed=1))


def test_note_describes_the_fraction():
    train, note = labelled(source([0] * 50 + [1] * 50), task_config("linear", label_fraction=0.1))
    assert len(train) == 10
    assert "10 of 100 images, 0.1 of each class, drawn with seed 0; 5 to 5 a class" in note
    for i in range(10):  # each image keeps its label
        assert train.labels[i] == int(train.names[i].split("/")[1])
        assert train.names[i].endswith(f"/{train.read(i)}.JPEG")


def test_a_list_names_images_by_file_name_or_path(tmp_path):
    path = tmp_path / "1percent.txt"
    path.write_text("3.JPEG\n\ntrain/1/60.JPEG\n3.JPEG\n")
    config = task_config("linear", label_list=str(path))
    train, note = labelled(source([0] * 50 + [1] * 50), config)
    assert list(train.names) == ["train/0/3.JPEG", "train/1/60.JPEG"]
    assert train.labels.tolist() == [0, 1] and str(path) in note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "n1_5.JPEG\n",
            "list': 1 of the 1 names are not images of images: n1_5.JPEG; .* like train/0/0.JPEG",
        ),
        ("\n", "list': the file has no names of images"),
    ],
)
def test_error_names_a_list_that_does_not_match(tmp_path, text, message):
    (tmp_path / "list").write_text(text)
    config = task_config("linear", label_list=str(tmp_path / "list"))
    with pytest.raises(ValueError, match=message):
        labelled(source([0, 1]), config)


def test_error_names_an_ambiguous_name(tmp_path):
    (tmp_path / "list").write_text("1.JPEG\n")
    both = Source("images", int, ["a/1.JPEG", "b/1.JPEG"], np.array([0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="names match several images .* 1.JPEG; give paths"):
        labelled(both, task_config("linear", label_list=str(tmp_path / "list")))


@pytest.mark.parametrize(
    "content", [b"caf\xe9.jpg\n\x1b.jpg\n", rb"caf\xe9.jpg" + b"\r\n" + rb"\x1b.jpg"]
)
def test_a_list_may_name_images_by_bytes_or_as_files_of_features_do(tmp_path, content):
    (tmp_path / "list").write_bytes(content)
    names = [os.fsdecode(name) for name in (b"a/caf\xe9.jpg", b"a/caf\xe8.jpg", b"b/\x1b.jpg")]
    images = Source("images", int, names, np.array([0, 0, 1]), ("a", "b"))
    found, _ = labelled(images, task_config("linear", label_list=str(tmp_path / "list")))
    assert list(found.names) == [names[0], names[2]]


def test_a_list_that_is_absent_is_named_with_its_key(tmp_path):
    images = Source("images", int, ["a"], np.array([0]), ("a",))
    with pytest.raises(OSError, match="^--config.label_list=/none: .*No such file"):
        labelled(images, task_config("linear", label_list="/none"))
