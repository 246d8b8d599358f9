"""Reads TFDS data sets in array_record format without TensorFlow."""

import json
import shlex
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.prepare.tfds import prepare
from moco_jax.data.sources.opening import open_sources
from moco_jax.data.sources.tfds_source import open_builder
from tests.data.sources.tiny_tfds import TinyColours, TinyTexts, run_command, tfrecord_copy


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


def test_images_labels_and_names(data_dir):
    sources = open_tfds("tiny_colours", data_dir)
    train = sources.train
    assert len(train) == 6 and sorted(train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == np.int32 and train.class_names == ("red", "blue")
    assert train.name == "tfds:tiny_colours, train"
    assert list(train.names)[:2] == ["tiny_colours/train/0", "tiny_colours/train/1"]
    for i in range(6):
        data = train.read(i)
        assert data.startswith(b"\xff\xd8\xff")
        image = decode(data, Decoding(32))
        assert image.shape == (8, 12, 3)
        assert image[4, 6].argmax() == (0 if train.labels[i] == 0 else 2)


def test_validation_replaces_a_test_split_with_hidden_labels(data_dir):
    test = open_tfds("tiny_colours", data_dir).test
    assert test.name == "tfds:tiny_colours, validation"
    assert sorted(test.labels.tolist()) == [0, 1]


def test_hidden_labels_are_ignored(data_dir):
    train = open_tfds("tiny_colours", data_dir, train_split="test").train
    assert train.labels is None and train.class_names == () and len(train) == 2


def test_slices_and_held_out(data_dir):
    sources = open_tfds("tiny_colours", data_dir, train_split="train[:4]", test_split="")
    assert len(sources.train) == 4 and sources.test is None
    sources = open_tfds("tiny_colours", data_dir, test_split="", held_out=0.34)
    assert sources.test.labels.tolist() in ([0, 1], [1, 0]) and len(sources.train) == 4


def test_unknown_split(data_dir):
    for key in ("train_split", "test_split"):
        with pytest.raises(ValueError, match="Unknown split 'dev'") as error:
            open_tfds("tiny_colours", data_dir, **{key: "dev"})
        assert str(error.value).startswith(f"--config.data.{key}=dev of the TFDS data set 'tiny_")
        assert f" in {data_dir}/tiny_colours/1.0.0 can't be read: " in str(error.value)


def test_data_set_without_image_feature(data_dir):
    with pytest.raises(
        ValueError, match=r"no feature of type Image; it has text \(Text\)"
    ) as error:
        open_tfds("tiny_texts", data_dir)
    assert f" in {data_dir}/tiny_texts/1.0.0 has" in str(error.value)
    assert "--config.data.path is the folder" in str(error.value)


@pytest.mark.parametrize("template", ["{DATASET}-{ODD}.{FILEFORMAT}", "{"])
def test_a_template_that_names_no_files(data_dir, tmp_path, template):
    shutil.copytree(f"{data_dir}/tiny_colours", tmp_path / "tiny_colours")
    file = tmp_path / "tiny_colours/1.0.0/dataset_info.json"
    info = json.loads(file.read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = template
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=f"tiny_colours.* in {tmp_path}") as error:
        open_tfds("tiny_colours", tmp_path)
    assert "--config.data." in str(error.value) and len(str(error.value)) < 700


def command_of(error):
    """Returns the command in an error message."""
    return str(error.value).split("Run this once:\n")[1].splitlines()[0].strip()


def test_not_prepared(tmp_path):
    folder = tmp_path / "my data"
    (folder / "tiny_colours").mkdir(parents=True)
    with pytest.raises(ValueError, match="'tiny_colours' is not prepared: nothing in") as error:
        open_tfds("tiny_colours", folder)
    assert command_of(error) == (
        f"python -m moco_jax.data.prepare --name=tiny_colours '--data_dir={folder}'"
    )


def test_the_command_in_the_message_works(tmp_path, repository):
    (tmp_path / "it's" / "tiny_colours").mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        open_tfds("tiny_colours", tmp_path / "it's")
    done = run_command(command_of(error), repository)
    assert done.returncode == 0, done.stderr
    assert len(open_tfds("tiny_colours", tmp_path / "it's").train) == 6


def test_the_command_converts_tfrecords(data_dir, tmp_path, repository):
    tfrecord_copy(data_dir, tmp_path)
    with pytest.raises(ValueError, match="prepared as tfrecord, which can't be read by index") as e:
        open_tfds("tiny_colours", tmp_path)
    assert "converted in place, without TensorFlow" in str(e.value)
    assert shlex.split(command_of(e))[-1] == f"--data_dir={tmp_path}"
    done = run_command(command_of(e), repository)
    assert done.returncode == 0, done.stderr
    copy, original = (open_tfds("tiny_colours", path).train for path in (tmp_path, data_dir))
    assert copy.labels.tolist() == original.labels.tolist()


def test_format_that_can_not_be_converted(data_dir, tmp_path):
    info = tfrecord_copy(data_dir, tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(ValueError, match="prepared as riegeli, which can't") as error:
        open_tfds("tiny_colours", tmp_path)
    assert command_of(error).endswith(f"--data_dir={tmp_path}_array_record")


def test_error_lists_other_versions(data_dir, tmp_path):
    folder = tmp_path / "tiny_colours" / "0.9.0"
    shutil.copytree(data_dir / "tiny_colours" / "1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"version": "1.0.0"', '"version": "0.9.0"'))
    with pytest.raises(ValueError, match=r"other versions are prepared: tiny_colours:0.9.0"):
        open_tfds("tiny_colours", tmp_path)
    assert len(open_tfds("tiny_colours:0.9.0", tmp_path).train) == 6


def test_unknown_data_set(tmp_path):
    (tmp_path / "no_such_set").mkdir()
    with pytest.raises(ValueError, match="TFDS knows no data set 'no_such_set'"):
        open_tfds("no_such_set", tmp_path)


def test_folder_without_the_data_set(tmp_path):
    with pytest.raises(ValueError, match="(?s)no images.*not hold the TFDS data set 'tiny_colo"):
        open_tfds("tiny_colours", tmp_path)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    assert len(open_tfds("tiny_colours", tmp_path).train) == 2


HARM = "harmful_features"
HARM_CODE = """
import pathlib
import tensorflow_datasets as tfds
pathlib.Path(__file__).with_name("was_imported").touch()
class Harm(tfds.features.Image):
    pass
"""
IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
}


def features(**nested):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": nested},
    }


def sequence(inner):
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"pythonClassName": name, "sequence": {"feature": inner}}


def legacy(kind, content):
    return {"type": kind, "content": content}


FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"
HARMFUL = {
    "outermost": IMAGE | {"pythonClassName": f"{HARM}.Harm"},
    "in a dict": features(image=IMAGE, x=IMAGE | {"pythonClassName": f"{HARM}.Harm"}),
    "in a sequence": features(x=sequence(IMAGE | {"pythonClassName": f"{HARM}.Harm"})),
    "name of the proto": features(
        x={"python_class_name": f"{HARM}.Harm", "image": {"dtype": "uint8"}}
    ),
    "old form": legacy(FEATURES_DICT, {"x": legacy(f"{HARM}.Harm", {"shape": [1]})}),
    "JSON in a string": features(
        x={
            "pythonClassName": SEQUENCE,
            "jsonFeature": {
                "json": json.dumps({"length": None, "feature": legacy(f"{HARM}.Harm", {})})
            },
        }
    ),
}


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("registered", [True, False])
def test_classes_that_a_file_names_are_not_imported(
    data_dir, tmp_path, monkeypatch, name, registered
):
    folder = tmp_path / "data" / ("tiny_colours" if registered else "from_files") / "1.0.0"
    shutil.copytree(data_dir / "tiny_colours" / "1.0.0", folder)
    if not registered:
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace("tiny_colours", "from_files"))
        for file in folder.glob("tiny_colours*"):
            file.rename(file.with_name(file.name.replace("tiny_colours", "from_files")))
    (folder / "features.json").write_text(json.dumps(HARMFUL[name]))
    work = tmp_path / "work"
    work.mkdir()
    (work / f"{HARM}.py").write_text(HARM_CODE)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    for opened in (folder.parent.name, f"{folder.parent.name}:1.0.0"):
        with pytest.raises(ValueError, match=f"features.json names the class '{HARM}.Harm'"):
            open_tfds(opened, tmp_path / "data")
        with pytest.raises(ValueError, match=f"features.json names the class '{HARM}.Harm'"):
            prepare(opened, str(tmp_path / "data"))
    assert not (work / "was_imported").exists() and HARM not in sys.modules


def test_the_classes_of_a_data_set_without_code_are_allowed(data_dir, tmp_path):
    folder = tmp_path / "from_files" / "1.0.0"
    shutil.copytree(data_dir / "tiny_colours" / "1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("tiny_colours", "from_files"))
    for file in folder.glob("tiny_colours*"):
        file.rename(file.with_name(file.name.replace("tiny_colours", "from_files")))
    assert len(open_tfds("from_files", tmp_path).train) == 6
    (tmp_path / "from_files").rename(tmp_path / "FromFiles")
    (folder.parents[1] / "FromFiles" / "1.0.0" / "features.json").write_text(
        json.dumps(HARMFUL["outermost"])
    )
    with pytest.raises(ValueError, match="names the class"):  # TFDS would find it as from_files
        open_tfds("FromFiles", tmp_path)


def test_dataset_info_may_name_no_class_either(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny_colours", tmp_path / "tiny_colours")
    path = tmp_path / "tiny_colours" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": HARMFUL["outermost"]}))
    with pytest.raises(ValueError, match="dataset_info.json names the class"):
        open_tfds("tiny_colours", tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000, '{"a": ' * 200 + "1" + "}" * 200]
)
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_damaged_json(data_dir, tmp_path, file, text):
    shutil.copytree(data_dir / "tiny_colours", tmp_path / "tiny_colours")
    (tmp_path / "tiny_colours" / "1.0.0" / file).write_text(text)
    with pytest.raises(ValueError):
        open_tfds("tiny_colours:1.0.0", tmp_path)


@pytest.mark.parametrize(
    "name", ["kaggle:cifar10", "huggingface:mnist", "cifar10/data_dir=/x", "../x"]
)
def test_names_that_run_other_code_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="allowed: 'tfds:<name>'"):
        open_builder(name, str(tmp_path))


def test_remote_data_directory_is_refused():
    with pytest.raises(ValueError, match="must be a folder of this machine"):
        open_builder("cifar10", "gs://bucket")
