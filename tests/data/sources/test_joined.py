"""Several paths as one data set: classes by name, images without labels, who is evaluated."""

import numpy as np
import pytest

from moco_jax.data.sources.source import Source, array_source, hold_out
from moco_jax.encoders import feature_file
from moco_jax.encoders.feature_file import FeatureRows
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.run import build
from moco_jax.supervised import config as supervised
from moco_jax.supervised.labels import labelled
from tests.data.sources.stores import contents, images, open_images, write_folder, write_tar
from tests.data.sources.tables import layouts
from tests.tiny import tiny_config


def classes(source: Source) -> list[str]:
    return ["" if label < 0 else source.class_names[label] for label in source.labels]


def test_images_without_labels_beside_labelled_ones(tmp_path):
    own = write_folder(tmp_path / "own", ["1.jpg", "2.jpg"])
    other = write_folder(tmp_path / "other", [*images("train/a train/b", 2), "test/b/9.jpg"])
    sources = open_images(f"{own}+{other}")
    assert contents(sources.train)[:3] == ["1.jpg", "2.jpg", "train/a/0.jpg"]
    assert classes(sources.train) == ["", "", "a", "a", "b", "b"]
    assert classes(sources.test) == ["b"] and sources.test.class_names == ("a", "b")
    assert sources.notes[0] == (
        "2 classes: a, b; train: 6 images in own (2) + other (4); test: 1 image in other"
    )
    assert "2 images of 6 have no label: they are trained on, not evaluated" in sources.notes
    assert sources.train.names[2].endswith("other/train/a/0.jpg")


def test_classes_are_joined_by_name(tmp_path):
    first = write_folder(tmp_path / "first", [*images("train/b train/c", 1), "val/c/1.jpg"])
    second = write_tar(tmp_path / "second.tar", [*images("train/a train/c", 1), "test/a/1.jpg"])
    sources = open_images(f"{first}+{second}")
    assert sources.train.class_names == sources.test.class_names == ("b", "c", "a")
    assert classes(sources.train) == ["b", "c", "a", "c"]
    assert classes(sources.test) == ["c", "a"]
    assert contents(sources.test) == ["val/c/1.jpg", "test/a/1.jpg"]


def test_only_labelled_images_are_held_out(tmp_path):
    own = write_folder(tmp_path / "own", [f"{i}.jpg" for i in range(20)])
    other = write_folder(tmp_path / "other", images("a b", 10))
    sources = open_images(f"{own}+{other}", held_out=0.2)
    assert classes(sources.test) == ["a"] * 2 + ["b"] * 2
    assert classes(sources.train).count("") == 20 and len(sources.train) == 36


def test_a_part_that_is_absent_is_named(tmp_path):
    write_folder(tmp_path / "a", ["1.jpg"])
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {tmp_path}/b: corr"):
        open_images(f"{tmp_path}/a+{tmp_path}/b")
    with pytest.raises(ValueError, match="needs data.path"):
        open_images(f"{tmp_path}/a+")


def test_no_labels_at_all(tmp_path):
    for name in "ab":
        write_folder(tmp_path / name, [f"{name}1.jpg", f"{name}2.jpg"])
    sources = open_images(f"{tmp_path}/a+{tmp_path}/b", held_out=0.5)
    assert sources.train.labels is None and sources.test is None and len(sources.train) == 4


def partly_labelled(count: int = 40) -> Source:
    """Returns noise in which every second image has no label."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = np.where(np.arange(count) % 2, np.arange(count) // 2 % 4, -1).astype(np.int32)
    whole = array_source(pixels, np.maximum(labels, 0))
    return Source("noise", whole.read, whole.names, labels, ("a", "b", "c", "d"))


def test_a_supervised_task_takes_the_labelled_images():
    found, note = labelled(partly_labelled(), supervised.linear())
    assert (found.labels >= 0).all() and len(found) == 20
    assert note == "labels: 20 of 40 images"


def test_the_neighbours_of_the_monitor_have_labels(tmp_path):
    own = layouts.folder(tmp_path / "own", layouts.items(("x",), ("train",), 40))
    other = layouts.folder(tmp_path / "other", layouts.items(("a", "b"), count=8))
    config = tiny_config(data__source="images", data__path=f"{own}+{other}", steps=2)
    run = build(config, make_layout())
    assert run.monitor is not None and len(run.data) == 56
    rows = run.monitor.pixels()
    assert len(rows.bank) == 16 and sorted(set(rows.bank_labels.tolist())) == [0, 1]
    assert "kNN: 16 of the 56 training images have a label" in list(run.monitor.limits())


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_features_of_images_without_a_label(tmp_path, ending):
    source = partly_labelled(6)
    path = tmp_path / f"x{ending}"
    rows = FeatureRows(np.ones((6, 2), np.float32), np.arange(6))
    feature_file.write(path, [rows], source, {"encoder": "x", "output": "backbone"})
    found = feature_file.read(path)
    assert found.labels.tolist() == source.labels.tolist()
    assert [found.class_name(row) for row in range(4)] == ["", "a", "", "b"]


def test_nothing_is_held_out_of_images_without_labels():
    sources = hold_out(partly_labelled(), 0.25, 0)
    assert sources.test is not None
    assert (sources.test.labels >= 0).all() and np.bincount(sources.test.labels).tolist() == [1] * 4
