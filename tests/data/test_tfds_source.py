"""TFDS data sets prepared as array_record are read without TensorFlow."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from moco_jax.data.decode import decode
from moco_jax.data.sources import open_sources

SPLITS = {"train": [0, 1, 0, 1, 0, 1], "validation": [1, 0], "test": [-1, -1]}


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Pictures of one colour; the test labels are hidden, as ImageNet's."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look for it by a package that it does not require

    def _info(self):
        features = {
            "photo": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["red", "blue"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        folder = pathlib.Path(self._data_dir_root)
        for i, label in enumerate(SPLITS[split]):
            path = folder / f"{label}.jpg"
            colour = {0: (250, 0, 0), 1: (0, 0, 250), -1: (0, 0, 0)}[label]
            Image.new("RGB", (12, 8), colour).save(path)
            yield i, {"photo": str(path), "kind": label, "file_name": f"{split} {i}"}


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """No pictures."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look for it by a package that it does not require

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinyColours, TinyTexts):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def open_tfds(name, path, **options):
    return open_sources(
        **({"source": f"tfds:{name}", "path": str(path), "held_out": 0.0, "seed": 0} | options)
    )


def test_pictures_labels_and_names(data_dir):
    sources = open_tfds("tiny_colours", data_dir)
    train = sources.train
    assert len(train) == 6 and sorted(train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == np.int32 and train.class_names == ("red", "blue")
    assert train.name == "tfds:tiny_colours, train"
    assert list(train.names)[:2] == ["tiny_colours/train/0", "tiny_colours/train/1"]
    for i in range(6):
        data = train.read(i)
        assert data.startswith(b"\xff\xd8\xff")
        image = decode(data, 32)
        assert image.shape == (8, 12, 3)
        assert image[4, 6].argmax() == (0 if train.labels[i] == 0 else 2)


def test_validation_serves_where_test_labels_are_hidden(data_dir):
    test = open_tfds("tiny_colours", data_dir).test
    assert test.name == "tfds:tiny_colours, validation"
    assert sorted(test.labels.tolist()) == [0, 1]


def test_hidden_labels_are_no_labels(data_dir):
    train = open_tfds("tiny_colours", data_dir, train_split="test").train
    assert train.labels is None and train.class_names == () and len(train) == 2


def test_slices_and_held_out(data_dir):
    sources = open_tfds("tiny_colours", data_dir, train_split="train[:4]", test_split="")
    assert len(sources.train) == 4 and sources.test is None
    sources = open_tfds("tiny_colours", data_dir, test_split="", held_out=0.34)
    assert sources.test.labels.tolist() in ([0, 1], [1, 0]) and len(sources.train) == 4


def test_unknown_split(data_dir):
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        open_tfds("tiny_colours", data_dir, train_split="dev")


def test_no_image_feature(data_dir):
    with pytest.raises(ValueError, match=r"no feature of type Image; it has text \(Text\)"):
        open_tfds("tiny_texts", data_dir)


def test_not_prepared(tmp_path):
    (tmp_path / "tiny_colours").mkdir()
    with pytest.raises(ValueError, match="'tiny_colours' is not prepared") as error:
        open_tfds("tiny_colours", tmp_path)
    command = (
        f"tfds.builder('tiny_colours', data_dir='{tmp_path}', file_format='array_record')"
        ".download_and_prepare()"
    )
    assert command in str(error.value)


def test_the_command_in_the_message_works(tmp_path):
    (tmp_path / "tiny_texts").mkdir()
    with pytest.raises(ValueError) as error:
        open_tfds("tiny_texts", tmp_path)
    command = str(error.value).split('python -c "')[1].split('"\n')[0]
    exec(command, {})
    assert (tmp_path / "tiny_texts" / "1.0.0" / "dataset_info.json").exists()


def test_prepared_as_tfrecord(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny_colours", tmp_path / "tiny_colours")
    info = tmp_path / "tiny_colours" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="prepared as tfrecord, which can't") as error:
        open_tfds("tiny_colours", tmp_path)
    assert f"data_dir='{tmp_path}_array_record'" in str(error.value)


def test_unknown_data_set(tmp_path):
    (tmp_path / "no_such_set").mkdir()
    with pytest.raises(ValueError, match="TFDS knows no data set 'no_such_set'"):
        open_tfds("no_such_set", tmp_path)


def test_folder_without_the_data_set(tmp_path):
    with pytest.raises(ValueError, match="(?s)no pictures.*Nor is the TFDS data set 'tiny_colo"):
        open_tfds("tiny_colours", tmp_path)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    assert len(open_tfds("tiny_colours", tmp_path).train) == 2
