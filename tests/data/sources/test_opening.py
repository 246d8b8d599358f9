"""All kinds of sources follow the same rules, and errors name the mistake."""

import os

import numpy as np
import pytest

from moco_jax.data.sources.opening import open_sources
from tests.data.sources.stores import (
    ENDINGS,
    SPLIT_PATHS,
    contents,
    open_images,
    write_folder,
    write_tar,
)


@pytest.fixture(params=["folder", *ENDINGS])
def store(request, tmp_path):
    """Returns a function that writes paths as a folder or as an archive."""

    def write(paths):
        if request.param == "folder":
            return write_folder(tmp_path / "data", paths)
        compression = "" if request.param == "tar" else request.param
        return write_tar(tmp_path / f"data{ENDINGS[request.param]}", paths, compression)

    return write


def test_train_and_test_folders(store):
    sources = open_images(store(SPLIT_PATHS))
    assert contents(sources.train) == [
        "train/ant/4.webp",
        "train/cat/1.JPG",
        "train/cat/2.jpg",
        "train/dog/deep/er/3.png",
    ]
    assert sources.train.labels.tolist() == [0, 1, 1, 2]
    assert sources.train.labels.dtype == np.int32
    assert contents(sources.test) == ["test/cat/6.jpg", "test/dog/5.jpeg"]
    assert sources.test.labels.tolist() == [1, 2]
    assert sources.train.class_names == sources.test.class_names == ("ant", "cat", "dog")
    assert len(sources.train) == 4
    for name, text in zip(sources.train.names, contents(sources.train), strict=True):
        assert name.endswith(text)


def test_class_folders_without_a_split(store):
    sources = open_images(store(["b/1.jpg", "a/2.jpg", "a/3.jpg"]))
    assert contents(sources.train) == ["a/2.jpg", "a/3.jpg", "b/1.jpg"]
    assert sources.train.labels.tolist() == [0, 0, 1]
    assert sources.test is None


@pytest.mark.parametrize(
    "paths",
    [
        ["2.jpg", "1.jpg"],  # flat
        ["top.jpg", "a/1.jpg", "b/2.jpg"],  # images beside the folders
        ["a/1.jpg", "a/2.jpg"],  # one folder is not a class
        ["train/1.jpg", "train/2.jpg"],
    ],
)
def test_folders_without_classes(store, paths):
    sources = open_images(store(paths), held_out=0.5)
    assert contents(sources.train) == sorted(paths)
    assert sources.train.labels is None and sources.train.class_names == ()
    assert sources.test is None


def test_folders_that_hold_everything_are_skipped(store):
    inside = open_images(store([f"a/cifar10/{path}" for path in SPLIT_PATHS]))
    assert inside.train.class_names == ("ant", "cat", "dog")
    assert contents(inside.test) == ["a/cifar10/test/cat/6.jpg", "a/cifar10/test/dog/5.jpeg"]


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_other_names_of_the_test_folder(store, folder):
    paths = ["train/a/1.jpg", "train/b/2.jpg", f"{folder}/b/3.jpg"]
    sources = open_images(store(paths))
    assert contents(sources.test) == [f"{folder}/b/3.jpg"]
    assert sources.test.labels.tolist() == [1]
    assert sources.test.name.endswith(f", {folder}")


def test_labelled_validation_folder_replaces_an_unlabelled_test_folder(store):
    # ImageNet has these folders: its test labels are not public.
    paths = ["train/a/1.jpg", "train/b/2.jpg", "test/3.jpg", "val/a/4.jpg", "val/b/5.jpg"]
    assert contents(open_images(store(paths)).test) == ["val/a/4.jpg", "val/b/5.jpg"]


def test_named_splits(store):
    path = store([*SPLIT_PATHS, "extra/cat/7.jpg", "extra/dog/8.jpg"])
    sources = open_images(path, train_split="test", test_split="extra")
    assert contents(sources.train) == ["test/cat/6.jpg", "test/dog/5.jpeg"]
    assert contents(sources.test) == ["extra/cat/7.jpg", "extra/dog/8.jpg"]
    assert open_images(path, test_split="").test is None


def test_hidden_files_and_other_files_are_ignored(store):
    rubbish = ["a/._1.jpg", ".cache/2.jpg", "__MACOSX/a/3.jpg", "a/notes.txt", "README"]
    sources = open_images(store(["a/1.jpg", "b/2.jpg", *rubbish]))
    assert contents(sources.train) == ["a/1.jpg", "b/2.jpg"]
    assert sources.train.class_names == ("a", "b")


@pytest.mark.parametrize(
    "paths, options, message",
    [
        (["notes.txt", "a/x.npy"], {}, r"holds no images; looked for .jpg, .*found 1 .*1 \."),
        ([*SPLIT_PATHS, "test/emu/9.jpg"], {}, "test/ has emu/, not among the 3 classes of train"),
        (["test/a/1.jpg", "val/b/2.jpg"], {}, "has test/, val/ but no train/; to train on one"),
        (SPLIT_PATHS, {"train_split": "all"}, "='all' must be a folder; found test/, train/"),
        (SPLIT_PATHS, {"test_split": "dev"}, "='dev' must be a folder with labelled images"),
    ],
)
def test_unsupported_folders_are_errors(store, paths, options, message):
    with pytest.raises(ValueError, match=message):
        open_images(store(paths), **options)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write_folder(tmp_path, ["images/1.jpg", "images/2.jpg"])))
    assert open_images("~/images").train.names[0] == f"{tmp_path}/images/1.jpg"


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean s3://b/x"):
        open_images("s3:/b/x")
    with pytest.raises(FileNotFoundError, match="there is no file or folder /absent/place"):
        open_images("/absent/place")
    with pytest.raises(ValueError, match="holds no images; looked for .*found no files"):
        open_images(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folder_without_read_permission(tmp_path):
    folder = write_folder(tmp_path, ["a/1.jpg", "b/2.jpg"]) / "a"
    folder.chmod(0)
    with pytest.raises(PermissionError, match=str(folder)):
        open_images(tmp_path)
    folder.chmod(0o700)


@pytest.mark.parametrize("name", ["images", "images.tar", "images.npz"])
def test_an_error_of_the_disk_names_the_key(tmp_path, monkeypatch, name):
    place = tmp_path / name
    write_folder(place, ["a/1.jpg"]) if name == "images" else place.write_bytes(b"x")

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr("builtins.open", refused)
    named = f"^--config.data.path={place}: .*Permission denied: '{place}"
    with pytest.raises(PermissionError, match=named):
        open_images(place)


def test_links_are_followed_except_loops(tmp_path):
    root = write_folder(tmp_path / "root", ["a/1.jpg", "b/2.jpg"])
    write_folder(tmp_path / "elsewhere", ["3.jpg"])
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "loop").symlink_to(root)
    assert contents(open_images(root).train) == ["a/1.jpg", "b/2.jpg", "3.jpg"]


def test_other_files_are_refused(tmp_path):
    for name, message in [("a.bin", "allowed: a folder, or .tar"), ("a.JPG", "single image")]:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=message):
            open_images(tmp_path / name)


def test_npz(tmp_path):
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    test = {"test_images": images[:1], "test_labels": [1]}
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 2], **test)
    sources = open_images(tmp_path / "a.npz", held_out=0.5)
    assert sources.train.read(2).tolist() == [[8, 9], [10, 11]]
    assert sources.train.labels.tolist() == [0, 1, 2]
    assert len(sources.test) == 1 and sources.test.labels.tolist() == [1]
    assert sources.test.class_names == ("0", "1", "2")
    assert sources.test.name == "a.npz, test"


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"photos": np.zeros((1, 2, 2), np.uint8)}, "no array 'images'; it has photos; "),
        ({"images": np.array([{}, {}], object)}, "can't read the arrays"),
        (
            {"images": np.zeros((1, 2, 2), np.uint8), "test_labels": np.array([1])},
            "both test_images and test_labels, or neither",
        ),
        (
            {
                "images": np.zeros((2, 2, 2), np.uint8),
                "labels": np.array([0, 1]),
                "test_images": np.zeros((1, 2, 2), np.uint8),
                "test_labels": np.array([2]),
            },
            "label 2 has no class name; got 2 names",
        ),
    ],
)
def test_invalid_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("data", [b"text", b"PK\3\4 cut off", b""])
def test_damaged_npz(tmp_path, data):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="can't read the arrays of"):
        open_images(tmp_path / "a.npz")


def test_nothing_is_held_out_beside_a_test_split(tmp_path):
    sources = open_images(write_folder(tmp_path, SPLIT_PATHS), held_out=0.5)
    assert len(sources.train) == 4 and len(sources.test) == 2


def test_class_folders_are_held_out_by_seed(tmp_path):
    root = write_folder(tmp_path, [f"{label}/{i}.jpg" for label in "ab" for i in range(10)])
    sources = open_images(root, held_out=0.2)
    assert sources.test.labels.tolist() == [0, 0, 1, 1] and len(sources.train) == 16
    assert not set(sources.test.names) & set(sources.train.names)


def test_flat_images_without_a_test_split(tmp_path):
    sources = open_images(write_folder(tmp_path, ["1.jpg", "2.jpg"]), test_split="")
    assert len(sources.train) == 2 and sources.test is None


def test_digits():
    sources = open_sources(source="digits", path="", held_out=0.1, seed=0)
    assert (len(sources.train), len(sources.test)) == (5988, 1200)
    assert sources.train.class_names == sources.test.class_names == tuple("0123456789")
    assert sources.train.read(0).shape == (32, 32, 3)
    assert sources.train.names[7] == "digits/train/7"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source": "cifar"}, "source='cifar' is unknown; allowed: digits, images .*tfds:<name>"),
        ({"source": "images"}, "needs data.path"),
        ({"source": "tfds:"}, "must name a data set"),
        ({"source": "digits", "held_out": 1.0}, r"must be a fraction in \[0, 1\); got 1.0"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        open_sources(**({"path": "", "held_out": 0.1, "seed": 0} | options))
