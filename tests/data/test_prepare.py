"""`prepare` makes TFDS data sets readable by index: it converts TFRecords or prepares them."""

import collections
import json
import os
import shutil

import pytest
import tensorflow_datasets as tfds

from moco_jax.data.prepare import __main__ as command_module
from moco_jax.data.prepare import tfds as prepare_lib
from moco_jax.data.prepare.tfds import prepare
from moco_jax.data.sources.opening import open_sources
from moco_jax.terminal import command_line
from tests.data.sources.tiny_tfds import (
    VERSION,
    TinyColours,
    records,
    tfrecord_copy,
    write_tfrecords,
)
from tests.in_process import exit_code

TRAIN = "tiny_colours-train.{}-0000{}-of-00002"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """tiny_colours as array_record, prepared by TFDS."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyColours(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def copy(data_dir, tmp_path):
    """The folder of a copy of `data_dir` in TFRecords."""
    return tfrecord_copy(data_dir, tmp_path)


def open_train(path):
    sources = open_sources(source="tfds:tiny_colours", path=str(path), held_out=0.0, seed=0)
    return sources.train


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_conversion_gives_the_same_records(data_dir, copy, tmp_path, capsys):
    before = contents(copy)
    prepare("tiny_colours", str(tmp_path))
    original = records(
        data_dir / "tiny_colours" / VERSION / "tiny_colours-train.array_record-00000-of-00001"
    )
    assert len(original) == 6
    assert records(copy / TRAIN.format("array_record", 0)) == original[:4]
    assert records(copy / TRAIN.format("array_record", 1)) == original[4:]
    read, expected = open_train(tmp_path), open_train(data_dir)
    assert read.labels.tolist() == expected.labels.tolist()
    assert [read.read(i) for i in range(6)] == [expected.read(i) for i in range(6)]
    assert f"tiny_colours can be read by index (array_record) in {copy}" in capsys.readouterr().out

    after = contents(copy)
    listed = '  "alternativeFileFormats": [\n    "array_record"\n  ],\n'
    info = after["dataset_info.json"].decode()
    assert info.replace(listed, "") == before["dataset_info.json"].decode() != info
    assert sorted(after.keys() - before.keys()) == [
        "tiny_colours-test.array_record-00000-of-00001",
        TRAIN.format("array_record", 0),
        TRAIN.format("array_record", 1),
        "tiny_colours-validation.array_record-00000-of-00001",
    ]
    assert all(after[name] == before[name] for name in before if name != "dataset_info.json")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-5, "it can't be read beyond record 1 of 2"),
        (None, "it holds 1 records, but dataset_info.json lists 2"),
        (8, "it can't be read beyond record 0 of 2"),
    ],
)
def test_error_names_the_damaged_shard_and_a_rerun_resumes(copy, tmp_path, keep, message):
    before = contents(copy)
    damaged = copy / TRAIN.format("tfrecord", 1)
    whole = damaged.read_bytes()
    length = int.from_bytes(whole[:8], "little") + 16
    damaged.write_bytes(whole[: length if keep is None else keep])
    with pytest.raises(ValueError) as error:
        prepare("tiny_colours", str(tmp_path))
    assert str(error.value) == f"{damaged} is damaged: {message}"
    after = contents(copy)
    assert after["dataset_info.json"] == before["dataset_info.json"]
    first = TRAIN.format("array_record", 0)
    assert first in after and TRAIN.format("array_record", 1) not in after
    assert not [name for name in after if name.startswith(".")]

    # After the repair the conversion resumes: it does not write the complete shard again.
    damaged.write_bytes(whole)
    written = (copy / first).stat()
    prepare("tiny_colours", str(tmp_path))
    assert (copy / first).stat().st_ino == written.st_ino
    assert (copy / first).stat().st_mtime_ns == written.st_mtime_ns
    assert len(open_train(tmp_path)) == 6


def test_wrong_record_length_is_an_error(copy, tmp_path):
    path = copy / TRAIN.format("tfrecord", 0)
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"00000-of-00002 is damaged: .* beyond record 0 of 4"):
        prepare("tiny_colours", str(tmp_path))


def test_killed_conversion_resumes(copy, tmp_path):
    prepare("tiny_colours", str(tmp_path))
    converted = contents(copy)
    info = json.loads(converted["dataset_info.json"])
    del info["alternativeFileFormats"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    kept, half = (copy / TRAIN.format("array_record", i) for i in (0, 1))
    lost, other = (
        copy / f"tiny_colours-{split}.array_record-00000-of-00001"
        for split in ("test", "validation")
    )
    half.write_bytes(half.read_bytes()[:-9])
    lost.rename(lost.with_name(f".incomplete-77-{lost.name}"))
    shutil.copy(kept, other)  # complete, but with another number of records
    written = kept.stat()
    prepare("tiny_colours", str(tmp_path))
    assert contents(copy) == converted
    assert kept.stat().st_mtime_ns == written.st_mtime_ns


def test_missing_tfrecords(copy, tmp_path):
    (copy / TRAIN.format("tfrecord", 1)).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 shards .*train.tfrecord-00001-of-00002$"):
        prepare("tiny_colours", str(tmp_path))
    assert not list(copy.glob("*array_record*"))


def test_other_listed_formats_are_kept(copy, tmp_path):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(
        json.dumps(info | {"alternativeFileFormats": ["riegeli"]})
    )
    prepare("tiny_colours", str(tmp_path))
    info = json.loads((copy / "dataset_info.json").read_text())
    assert info["alternativeFileFormats"] == ["riegeli", "array_record"]
    assert info["fileFormat"] == "tfrecord"


def test_splits_that_can_not_be_converted(copy, tmp_path):
    path = copy / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["filepathTemplate"] = "{SPLIT}-{SHARD_X_OF_Y}"
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="dataset_info.json has file names without a format"):
        prepare("tiny_colours", str(tmp_path))
    del info["splits"][0]["shardLengths"]
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=f"split '{info['splits'][0]['name']}' .* has no shards"):
        prepare("tiny_colours", str(tmp_path))


def test_other_formats_are_not_converted(copy, tmp_path):
    path = copy / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(ValueError, match="prepared as riegeli; only tfrecord can be converted"):
        prepare("tiny_colours", str(tmp_path))


def test_not_enough_disk_space(copy, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 200_000_000))
    big = copy / TRAIN.format("tfrecord", 1)
    os.truncate(big, 2_000_000_000)  # a sparse file
    with pytest.raises(OSError, match="conversion needs 2.0 GB, but only 0.2 GB are free in /"):
        prepare("tiny_colours", str(tmp_path))
    assert not list(copy.glob("*array_record*"))


def test_shards_fit_into_the_required_space(tmp_path, monkeypatch):
    for sizes in ([1], [30] * 5000, [100_000] * 20):
        source, target = tmp_path / "source", tmp_path / "target"
        write_tfrecords(source, [os.urandom(size) for size in sizes])
        shard = prepare_lib._Shard(source, target, len(sizes))
        prepare_lib._write(shard)
        usage = collections.namedtuple("usage", "free")(target.stat().st_size - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(OSError, match="the conversion needs"):
            prepare_lib._check_space([shard])


def test_not_writable(copy, tmp_path, monkeypatch):
    # os.access is patched since root, as in a container, can write to every folder.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match=f"{copy} holds .* tfrecord, but can't be written"):
        prepare("tiny_colours", str(tmp_path))


def test_write_failure_is_an_os_error(tmp_path):
    write_tfrecords(tmp_path / "source", [b"abc"])
    shard = prepare_lib._Shard(tmp_path / "source", tmp_path / "absent" / "target", 1)
    with pytest.raises(OSError, match="can't write .*absent/target: .*No such file"):
        prepare_lib._write(shard)


def test_already_prepared(data_dir, capsys):
    before = contents(data_dir / "tiny_colours" / VERSION)
    prepare("tiny_colours", str(data_dir))
    out = capsys.readouterr().out.splitlines()
    folder = data_dir / "tiny_colours" / VERSION
    assert out[:2] == [
        "already prepared",
        f"tiny_colours can be read by index (array_record) in {folder}",
    ]
    assert sorted(line[: line.index("records")] for line in out[2:]) == [
        "  test: 2 ",
        "  train: 6 ",
        "  validation: 2 ",
    ]
    assert contents(folder) == before


def test_absent_data_set_is_prepared(tmp_path, capsys):
    prepare("tiny_colours", str(tmp_path))
    assert "tiny_colours can be read by index (array_record)" in capsys.readouterr().out
    assert sorted(open_train(tmp_path).labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_existing_folder_is_an_error(tmp_path):
    folder = tmp_path / "tiny_colours" / VERSION
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{folder} exists; .*delete it and run this again"):
        prepare("tiny_colours", str(tmp_path))


@pytest.fixture
def without_tensorflow(monkeypatch):
    """Simulates a machine without TensorFlow; a download is an error."""

    def download(*_, **__):
        raise AssertionError("TFDS started a download")

    monkeypatch.setattr(prepare_lib, "_TF_MODULES", ("tensorflow_that_is_absent",))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)


def test_missing_tensorflow_is_reported_before_a_download(tmp_path, without_tensorflow):
    with pytest.raises(ValueError, match="'cifar10' is not prepared") as error:
        prepare("cifar10", str(tmp_path))
    assert "\n  pip install 'moco-jax[tf]'" in str(error.value)
    assert "by hand" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("manual_dir", ["", "empty", "absent"])
def test_error_lists_files_to_download_by_hand(tmp_path, without_tensorflow, manual_dir):
    (tmp_path / "empty").mkdir()
    manual = tmp_path / (manual_dir or "downloads/manual")
    with pytest.raises(ValueError) as error:
        prepare("imagenet2012", str(tmp_path), manual_dir and str(manual))
    text = str(error.value)
    assert f"downloaded by hand, into {manual} (or another --manual_dir)" in text
    assert "ILSVRC2012_img_train.tar" in text and "https://image-net.org/download-images" in text
    assert text.endswith("pip install 'moco-jax[tf]'")


def test_files_downloaded_by_hand_are_found(tmp_path, without_tensorflow):
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(ValueError, match="pip install") as error:
        prepare("imagenet2012", str(tmp_path), str(tmp_path))
    assert "by hand" not in str(error.value)


def test_other_tfds_errors_are_value_errors(tmp_path, monkeypatch):
    def generate(*_):
        raise KeyError("kind")

    monkeypatch.setattr(TinyColours, "_split_generators", generate)
    with pytest.raises(ValueError, match="TFDS could not prepare 'tiny_colours': KeyError: 'kind'"):
        prepare("tiny_colours", str(tmp_path))


def test_builder_that_imports_tensorflow_late(tmp_path):
    if prepare_lib.importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    with pytest.raises(ValueError, match=r"^TFDS needs TensorFlow .*\n  pip install 'moco-jax\[tf"):
        prepare("tiny_arrays", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--name or --from must be given, such as --name=cifar10"),
        ("--name=no_such_set --data_dir=absent", "TFDS knows no data set 'no_such_set'"),
    ],
)
def test_command_prints_errors_without_a_traceback(capsys, arguments, message):
    command = lambda: command_line.run_main(command_module.main, config="none")  # noqa: E731
    assert exit_code(command, *arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert printed.err.startswith(f"error: {message}")
