"""Shards are one source: images over all shards, labels beside them, splits by name."""

import gc
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moco_jax.data.sources.shards import patterns
from moco_jax.data.sources.shards.index_file import open_shard
from moco_jax.data.sources.shards.reading import ShardFiles
from moco_jax.data.sources.source import fingerprint
from tests.data.sources.shards.writing import samples, write_shard
from tests.data.sources.stores import SPLIT_PATHS, contents, open_images, write_folder


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples: labels 0, 1, 2."""
    for number in range(3):
        keys = [f"{number}{letter}" for letter in "ab"]
        write_shard(tmp_path / f"set-{number:03}.tar", samples(keys))
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    ["", "/set-{000..002}.tar", "/set-*.tar", "/set-{000,001,002}.tar", "/{set,other}-00*.tar"],
)
def test_shards_are_one_source(shards, pattern):
    train = open_images(f"{shards}{pattern}").train
    assert contents(train) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.labels.dtype == np.int32
    assert train.class_names == ("0", "1", "2")
    assert train.names[3] == "set-001.tar/1b.jpg"


def test_accents_in_both_forms_are_one_class(tmp_path):
    labels = {"1": "\u00e9", "2": "e\u0301", "3": "f\u3000", "4": "f\n"}
    write_shard(tmp_path / "a-train-0.tar", samples(labels, label=labels.__getitem__))
    write_shard(tmp_path / "a-test-0.tar", samples("34", label={"3": "e\u0301", "4": "f"}.get))
    sources = open_images(tmp_path)
    assert sources.train.class_names == ("f", "f\u3000", "\u00e9")
    assert sources.train.labels.tolist() == [2, 2, 1, 0] and sources.test.labels.tolist() == [2, 0]


def test_class_names_of_numbers_in_another_form(tmp_path):
    write_shard(tmp_path / "shards/a-0.tar", samples("01"))
    (tmp_path / "shards/shards.json").write_text(json.dumps({"class_names": ["e\u0301", "b"]}))
    own = write_folder(tmp_path / "own", ["\u00e9/1.jpg", "b/1.jpg"])
    train = open_images(f"{tmp_path}/shards+{own}").train
    assert train.class_names == ("\u00e9", "b") and train.labels.tolist() == [0, 1, 1, 0]


def test_missing_shard_is_named(shards):
    (shards / "set-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 shard of the 3 .* missing: .*set-001.tar"):
        open_images(shards / "set-{000..002}.tar")
    notes = "\n".join(open_images(shards).notes)
    assert "warning: the numbers of the shards have gaps: there is no set-001.tar" in notes
    with pytest.raises(FileNotFoundError, match=r"no file is named .*other-\{0..3\}.tar"):
        open_images(shards / "other-{0..3}.tar")


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{9..1}", "{0..9999}{0..9999}"])
def test_hostile_patterns(tmp_path, pattern):
    with pytest.raises(ValueError, match="--config.data.path=.*1,000,000"):
        open_images(tmp_path / f"{pattern}.tar")


@pytest.mark.parametrize("folder", ["c++", "{a,b}", "a*", "{0..9}[1]/c++"])
def test_patterns_in_folders_of_odd_names(tmp_path, folder):
    for number in range(2):
        write_shard(tmp_path / folder / f"x+{number}.tar", {f"{number}.jpg": str(number)})
    write_shard(tmp_path / "a/x+0.tar", {"1.jpg": "other"})
    pattern = f"{tmp_path}/{folder}/x+{{0..1}}.tar"
    assert contents(open_images(pattern).train) == ["0", "1"]
    assert contents(open_images(f"{tmp_path}/a/*.tar+{pattern}").train) == ["other", "0", "1"]
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*y.tar: correct"):
        open_images(f"{tmp_path}/{folder}/y.tar")


def test_numbers_in_names_are_sorted_by_value(tmp_path):
    for number in (10, 9, 100):
        write_shard(tmp_path / f"a-{number}.tar", {f"{number}.jpg": str(number)})
    assert contents(open_images(tmp_path).train) == ["9", "10", "100"]


@pytest.mark.parametrize("form", ["a-train-{}.tar", "train/{}.tar", "a_training_{}-of-2.tar"])
def test_splits_by_name(tmp_path, form):
    write_shard(tmp_path / form.format(0), samples(["0a", "1a"]))
    write_shard(tmp_path / form.format(1), samples(["1b", "2b"]))
    test = form.replace("training", "val").replace("train", "val")
    write_shard(tmp_path / test.format(0), samples(["2c", "1c"]))
    sources = open_images(tmp_path)
    assert contents(sources.train) == ["0a", "1a", "1b", "2b"]
    assert contents(sources.test) == ["2c", "1c"] and sources.test.labels.tolist() == [2, 1]
    assert sources.test.class_names == sources.train.class_names
    assert "test: 2 images in" in sources.notes[0]
    everything = open_images(tmp_path, train_split="", test_split="test")
    assert len(everything.train) == 6 and everything.test is None


def test_ambiguous_splits_are_errors(tmp_path):
    write_shard(tmp_path / "birds-0.tar", samples(["0a"]))
    write_shard(tmp_path / "test-0.tar", samples(["0b"]))
    with pytest.raises(ValueError, match="would train on test images. Set --config.data.train_sp"):
        open_images(tmp_path)
    sources = open_images(tmp_path, train_split="birds")
    assert contents(sources.train) == ["0a"] and contents(sources.test) == ["0b"]
    with pytest.raises(ValueError, match="train_split=cats must be a name of shards; found 'bird"):
        open_images(tmp_path, train_split="cats")
    write_shard(tmp_path / "trains-0.tar", samples(["0a"]))
    write_shard(tmp_path / "training-0.tar", samples(["0a"]))
    with pytest.raises(
        ValueError, match="several names that look like train: 'training', 'trains'"
    ):
        open_images(tmp_path)


def class_name(key):
    return json.dumps({"class_name": key[:3], "label": 7})


def test_labels_are_matched_by_name(tmp_path):
    write_shard(
        tmp_path / "train-0.tar",
        samples(
            ["cat1", "dog1", "cat2", "dog2"] * 1,
            "json",
            class_name,
        ),
    )
    write_shard(
        tmp_path / "val-0.tar",
        samples(["dog7", "dog8"], "json", class_name),
    )
    sources = open_images(tmp_path)
    assert sources.train.class_names == ("cat", "dog") and sources.test.labels.tolist() == [1, 1]
    notes = "".join(sources.notes)
    assert (
        "labels: a name in .json, key 'class_name', beside each image; not used: .json l" in notes
    )
    write_shard(
        tmp_path / "val-0.tar",
        samples(["owl7"], "json", class_name),
    )
    with pytest.raises(ValueError, match="has the classes owl, not among the 2 classes of train"):
        open_images(tmp_path)


def test_texts_are_classes_only_if_they_repeat(tmp_path):
    path = tmp_path / "a-0.tar"
    write_shard(path, samples([f"{c}{i}" for i in range(4) for c in "xy"], "txt"))
    assert open_images(tmp_path).train.class_names == ("x", "y")
    write_shard(path, samples([f"{c}{i}" for i in range(4) for c in "xy"], "txt", str))
    sources = open_images(tmp_path)
    assert sources.train.labels is None
    notes = "".join(sources.notes)
    assert ".txt files are no labels: 8 different texts for 8 images are captions (" in notes
    (tmp_path / "shards.json").write_text(json.dumps({"labels": ".txt"}))
    assert len(open_images(tmp_path).train.class_names) == 8
    (tmp_path / "shards.json").write_text(json.dumps({"labels": "txt"}))
    with pytest.raises(ValueError, match="shards.json: labels must be one of '.cls', '.json cla"):
        open_images(tmp_path)


def test_images_without_a_label(tmp_path):
    members = samples(["0a", "1a"])
    del members["1a.cls"]
    write_shard(tmp_path / "a-0.tar", members)
    sources = open_images(tmp_path)
    assert sources.train.labels is None and len(sources.train) == 2
    assert ".cls files are no labels: 1 of the 2 images have none (" in "".join(sources.notes)


def test_excluded_images(shards):
    sources = open_images(shards, exclude="set-001.tar,0b*")
    assert contents(sources.train) == ["0a", "2a", "2b"]
    assert sources.train.labels.tolist() == [0, 1, 1]
    assert sources.train.class_names == ("0", "2")  # as for folders
    assert "data.exclude='set-001.tar,0b*' leaves out 3 images" in sources.notes
    with pytest.raises(ValueError, match=r"data.exclude='\*.jpg' leaves out all 6 images"):
        open_images(shards, exclude="*.jpg")


def test_test_images_of_a_class_that_is_excluded(tmp_path):
    write_shard(tmp_path / "train-0.tar", samples(["0a", "1a", "2a"]))
    write_shard(tmp_path / "val-0.tar", samples(["1b", "2b"]))
    sources = open_images(tmp_path, exclude="1*")
    assert sources.train.class_names == sources.test.class_names == ("0", "2")
    assert contents(sources.test) == ["2b"] and sources.test.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"1 class \(1\) that is not among the 2 classes of train"):
        open_images(tmp_path, exclude="1a*")


def test_samples_without_one_image_are_left_out(tmp_path):
    write_shard(
        tmp_path / "a-0.tar",
        {"1.jpg": "one", "1.seg.png": "mask", "2.cls": "0", "3.jpg": "x", "3.png": "x",
         "4.v2.jpg": "four", "readme.md": "", ".5.jpg": "hidden", "../6.jpg": "out"},
    )  # fmt: skip
    sources = open_images(tmp_path)
    assert contents(sources.train) == ["one", "four"]
    notes = "\n".join(sources.notes)
    assert "left out: 1 x sample with several images: a-0.tar/3" in notes
    assert "left out: 2 x sample without an image: a-0.tar/2, a-0.tar/readme" in notes
    assert "left out: 1 x name outside of the archive: a-0.tar/../6.jpg" in notes
    assert "left out: 2 files: 1 .seg.png; 1 .md" in notes


def test_folders_in_shards_are_classes(tmp_path):
    write_folder(tmp_path / "folder", SPLIT_PATHS)
    for number in range(3):
        part = SPLIT_PATHS[number::3]
        write_shard(tmp_path / f"shards/a-{number}.tar", {path: path for path in part})
    expected, found = open_images(tmp_path / "folder"), open_images(tmp_path / "shards")
    for a, b in ((expected.train, found.train), (expected.test, found.test)):
        assert fingerprint(a) == fingerprint(b) and contents(a) == contents(b)


def test_class_names_of_a_file(shards):
    (shards / "shards.json").write_text(json.dumps({"class_names": ["ant", "bee", "cat", "dog"]}))
    assert open_images(shards).train.class_names == ("ant", "bee", "cat", "dog")
    (shards / "shards.json").write_text(json.dumps({"class_names": ["ant", "bee"]}))
    with pytest.raises(ValueError, match="the label 2 has no name among the 2 of class_names"):
        open_images(shards)
    for bad in ("[", '{"class_names": ["a", "a"]}', "[" * 100_000, '{"class_names": 3}'):
        (shards / "shards.json").write_text(bad)
        with pytest.raises(ValueError, match="shards.json.*(damaged|different texts)"):
            open_images(shards)


def test_truncated_shard_is_named(shards):
    whole = (shards / "set-001.tar").read_bytes()
    (shards / "set-001.tar").write_bytes(whole[:600])
    with pytest.raises(ValueError, match="the shard .*set-001.tar is damaged or not a tar"):
        open_images(shards)


def test_shard_that_is_replaced_during_a_run_is_named(shards):
    train = open_images(shards).train
    write_shard(shards / "set-001.tar", samples(["9z"] * 4))
    assert train.read(0) == b"0a"
    with pytest.raises(OSError, match="set-001.tar: it was changed or replaced after it was list"):
        train.read(2)
    (shards / "set-002.tar").unlink()
    with pytest.raises(OSError, match="No such file.*set-002.tar"):
        train.read(4)


def test_few_files_are_open(shards):
    listed = [open_shard(path) for path in patterns.in_folder(str(shards))]
    gc.collect()  # files of earlier tests may close meanwhile
    before = len(os.listdir("/proc/self/fd"))
    files = ShardFiles(listed, most=2)
    for _ in range(2):
        for number, shard in enumerate(listed):
            assert files.read(number, int(shard.samples.offsets[1]), 2) == f"{number}b".encode()
            assert len(os.listdir("/proc/self/fd")) <= before + 2
    del files
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_while_files_are_closed(tmp_path):
    for number in range(12):
        write_shard(tmp_path / f"a-{number}.tar", samples([f"{number}{i}" for i in "abcd"]))
    listed = [open_shard(path) for path in patterns.in_folder(str(tmp_path))]
    files = ShardFiles(listed, most=2)

    def read(seed):
        rng = np.random.default_rng(seed)
        for shard, image in zip(rng.integers(0, 12, 500), rng.integers(0, 4, 500), strict=True):
            sample = listed[shard].samples
            data = files.read(int(shard), int(sample.offsets[image]), int(sample.sizes[image]))
            assert data == f"{shard}{'abcd'[image]}".encode()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_folder_of_images_and_tars_is_a_folder(shards):
    (shards / "x").mkdir()
    (shards / "x/1.jpg").write_bytes(b"one")
    assert contents(open_images(shards).train) == ["one"]


def test_one_tar_says_how_its_labels_are_read(shards):
    sources = open_images(shards / "set-000.tar")
    assert sources.train.labels is None
    path = f"{shards}/set-000*.tar"
    line = f"the .cls files are labels of a shard: --config.data.path='{path}' reads them"
    assert line in sources.notes
    assert open_images(path).train.labels.tolist() == [0, 0]


def test_linked_folders_of_shards(shards, tmp_path):
    (shards / "loop").symlink_to(shards)
    assert len(open_images(shards).train) == 6
    (tmp_path / "links").mkdir()
    os.rename(shards / "set-000.tar", tmp_path / "links/set-000.tar")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train").symlink_to(tmp_path / "links")
    assert contents(open_images(tmp_path / "other").train) == ["0a", "0b"]


def test_shards_without_images(tmp_path):
    write_shard(tmp_path / "a-0.tar", {"1.mp4": "film"})
    with pytest.raises(ValueError, match="the shards .* holds no images; .*found 1 .mp4"):
        open_images(tmp_path)
    with tarfile.open(tmp_path / "a-0.tar", "w"):
        pass
    with pytest.raises(ValueError, match="the shards .* holds no images"):
        open_images(tmp_path)
