"""Folders in shards are classes; so are shards of one class each."""

import json

import pytest

from moco_jax.data.sources.source import fingerprint
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.stores import contents, images, open_images, write_folder

GUESS = "the name of each shard is the class of its images"


def write_classes(root, paths):
    """Writes a tar for each folder of images; the contents of an image are its path."""
    for folder in {path.rpartition("/")[0] for path in paths}:
        own = [path for path in paths if path.startswith(f"{folder}/")]
        write_shard(root / f"{folder}.tar", {path.rpartition("/")[2]: path for path in own})
    return root


@pytest.mark.parametrize("classes", ["cat dog", "n01440764 n01443537 n15075141", "a-1 b-1"])
def test_shards_of_one_class_are_the_folder_of_their_images(tmp_path, classes):
    paths = images(classes)[::-1]  # in another order than that of a folder
    found = open_images(write_classes(tmp_path / "shards", paths))
    expected = open_images(write_folder(tmp_path / "folder", paths))
    assert found.train.class_names == tuple(classes.split())
    assert contents(found.train) == contents(expected.train)
    assert found.train.labels.tolist() == expected.train.labels.tolist()
    assert fingerprint(found.train) == fingerprint(expected.train)
    [line] = [note for note in found.notes if GUESS in note]
    assert '{"labels": "none"} in shards.json beside the shards means no classes' in line


@pytest.mark.parametrize("names", ["a-0 a-1", "n00 n01", "cat-0 cat-1 dog-0", "a-0_x a-10_x"])
def test_numbered_shards_are_no_classes(tmp_path, names):
    sources = open_images(write_classes(tmp_path, images(names)))
    assert sources.train.labels is None and GUESS not in "".join(sources.notes)
    (tmp_path / "shards.json").write_text(json.dumps({"labels": "shard"}))
    assert open_images(tmp_path).train.class_names == tuple(names.split())


def test_the_names_of_shards_are_not_classes_beside_other_labels(tmp_path):
    for name in ("birds", "cars"):
        write_shard(tmp_path / f"text/{name}.tar", samples(["1", "2"], "txt", name.__add__))
        write_shard(tmp_path / f"folders/{name}.tar", {f"{c}/{name}.jpg": "x" for c in "pq"})
    assert open_images(tmp_path / "text").train.labels is None
    assert open_images(tmp_path / "folders").train.class_names == ("p", "q")
    write_classes(tmp_path / "none", images("cat dog"))
    (tmp_path / "none/shards.json").write_text(json.dumps({"labels": "none"}))
    sources = open_images(tmp_path / "none")
    assert sources.train.labels is None and len(sources.train) == 6


def test_splits_of_shards_of_one_class(tmp_path):
    train = images("train/cat train/dog train/owl")
    write_classes(tmp_path, [*train, *images("val/owl val/cat")])
    sources = open_images(tmp_path)
    assert contents(sources.train) == train
    assert contents(sources.test) == images("val/cat val/owl")
    assert sources.test.labels.tolist() == [0, 0, 0, 2, 2, 2]
    left = open_images(tmp_path, exclude="dog")
    assert left.train.class_names == left.test.class_names == ("cat", "owl")
    for name in ("cat", "owl"):
        (tmp_path / f"val/{name}.tar").unlink()
    write_shard(tmp_path / "val/ILSVRC2012_img_val.tar", {"1.jpg": "1"})
    sources = open_images(tmp_path, held_out=0.4)
    assert len(sources.train) == 6 and len(sources.test) == 3
    assert contents(sources.test)[0].startswith("train/cat/")


def test_images_of_one_name_in_several_shards(tmp_path):
    write_shard(tmp_path / "a-0.tar", {"p/1.jpg": "first", "q/1.jpg": "q"})
    write_shard(tmp_path / "a-1.tar", {"p/0.jpg": "p", "p/1.jpg": "second"})
    write_shard(tmp_path / "a-2.tar", {"p/1.jpg": "third"})
    train = open_images(tmp_path).train
    assert contents(train) == ["p", "first", "second", "third", "q"]
    assert train.labels.tolist() == [0, 0, 0, 0, 1]
    assert list(train.names) == ["p/0.jpg", "p/1.jpg", "p/1.jpg", "p/1.jpg", "q/1.jpg"]
