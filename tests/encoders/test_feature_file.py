"""Writes features to files and reads them back, without the unreadable images."""

import importlib.util
import os

import numpy as np
import pytest

from moco_jax.data.sources.source import Source
from moco_jax.encoders import feature_file
from moco_jax.encoders.feature_file import FeatureRows

ABOUT = {"encoder": "runs/x", "output": "backbone"}
KINDS = ("features.npz", "features.parquet")


def a_source(labelled=True):
    labels = np.int32([0, 1, 1, 0, 2]) if labelled else None
    names = [f"folder/{i}/ü.jpg" for i in range(5)]
    return Source("five", lambda index: b"", names, labels, ("a", "b", "c") if labelled else ())


def some_parts():
    """Returns features of images 0, 1, 2 and 4: image 3 of the second part is unreadable."""
    features = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    return [FeatureRows(features[:2], np.arange(2)), FeatureRows(features[2:], np.array([2, 4]))]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_gives_back_what_was_written(tmp_path, name, labelled):
    source, parts = a_source(labelled), some_parts()
    assert feature_file.write(tmp_path / name, iter(parts), source, ABOUT) == 4
    got = feature_file.read(tmp_path / name)
    np.testing.assert_array_equal(got.features, np.concatenate([part.features for part in parts]))
    assert got.features.dtype == np.float32
    assert got.names.tolist() == [f"folder/{i}/ü.jpg" for i in (0, 1, 2, 4)]
    assert ABOUT.items() <= got.about.items()
    if labelled:
        assert got.labels is not None and got.labels.tolist() == [0, 1, 1, 2]
        assert got.class_names == ("a", "b", "c") and got.class_name(3) == "c"
    else:
        assert got.labels is None and got.class_names == () and got.class_name(3) == ""
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_numpy_reads_an_npz(tmp_path):
    feature_file.write(tmp_path / "features.npz", some_parts(), a_source(), ABOUT)
    with np.load(tmp_path / "features.npz") as file:
        assert set(file.files) == {"features", "names", "labels", "class_names", "about"}
        assert file["features"].shape == (4, 6)


@pytest.mark.parametrize("name", KINDS)
def test_write_that_fails_leaves_no_file(tmp_path, name):
    def parts():
        yield some_parts()[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        feature_file.write(tmp_path / name, parts(), a_source(), ABOUT)
    assert not list(tmp_path.iterdir())


def test_check_writable_names_the_flag_or_package(tmp_path, monkeypatch):
    (tmp_path / "old.npz").write_text("old")
    check = feature_file.check_writable
    with pytest.raises(ValueError, match=r"old.npz exists; give another --out, or --overwrite"):
        check(tmp_path / "old.npz", False)
    check(tmp_path / "old.npz", True)
    with pytest.raises(ValueError, match=r"the ending '.txt' is unknown; allowed: .npz, .parquet"):
        check(tmp_path / "new.txt", False)
    with pytest.raises(ValueError, match="--out=.*/none/new.npz: there is no folder .*/none$"):
        check(tmp_path / "none" / "new.npz", False)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="--out=.*/folder.npz is a folder; allowed: a file"):
        check(tmp_path / "folder.npz", True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(ValueError, match="--out=.*/new.npz: permission denied to write in /"):
            check(tmp_path / "new.npz", False)
    check(tmp_path / "new.parquet", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'moco-jax\[parquet\]'"):
        check(tmp_path / "new.parquet", False)


def test_error_for_a_file_without_features(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        feature_file.read(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz: it is not a file of features; allowed: "):
        feature_file.read(tmp_path / "other.npz")
    for name in KINDS:
        (tmp_path / name).write_text("text")
        with pytest.raises(ValueError, match="can't read the features of"):
            feature_file.read(tmp_path / name)
