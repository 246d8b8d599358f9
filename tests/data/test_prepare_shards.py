"""`prepare --to=shards` copies a data set into shards: the same images, labels, names and order."""

import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.prepare import __main__ as command_module
from moco_jax.data.prepare import reading
from moco_jax.data.prepare import shards as shards_lib
from moco_jax.data.prepare.encoding import Encoding, common_folder
from moco_jax.data.sources import source as source_lib
from moco_jax.data.sources.opening import open_sources
from moco_jax.data.sources.source import fingerprint
from moco_jax.data.sources.tables import parquet
from moco_jax.terminal import command_line
from tests.data.sources.stores import SPLIT_PATHS, contents, open_images, write_folder, write_tar
from tests.data.sources.tiny_tfds import TinyColours
from tests.in_process import exit_code


def prepare(*arguments):
    """Runs the command; returns its exit code."""
    return exit_code(
        lambda: command_line.run_main(command_module.main, config="none"), *map(str, arguments)
    )


def to_shards(source, out, *arguments):
    return prepare(f"--from={source}", "--to=shards", f"--out={out}", *arguments)


def digests(folder):
    return {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def write_images(root, names, side=(40, 30), **options):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
        image = Image.fromarray(pixels).resize(side[::-1], Image.Resampling.BICUBIC)
        image.save(root / name, **options)
    return root


@pytest.mark.parametrize("kind", ["folder", "tar", "shards"])
def test_shards_have_the_same_images(tmp_path, kind):
    write_folder(tmp_path / "folder", SPLIT_PATHS)
    write_tar(tmp_path / "x.tar", SPLIT_PATHS)
    assert to_shards(tmp_path / "folder", tmp_path / "shards", "--images_per_shard=3") == 0
    source = tmp_path / ("x.tar" if kind == "tar" else kind)
    assert to_shards(source, tmp_path / "out", "--images_per_shard=2") == 0
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == [
        "test-000000.tar", "train-000000.tar", "train-000001.tar",
    ]  # fmt: skip
    expected, found = open_images(tmp_path / "folder"), open_images(tmp_path / "out")
    for a, b in ((expected.train, found.train), (expected.test, found.test)):
        assert contents(a) == contents(b) and a.labels.tolist() == b.labels.tolist()
        assert a.class_names == b.class_names and fingerprint(a) == fingerprint(b)


def test_images_with_and_without_labels_are_not_converted_together(tmp_path, capsys):
    write_images(tmp_path / "own", ["1.png", "2.png"])
    write_folder(tmp_path / "folder", SPLIT_PATHS)
    both = f"{tmp_path / 'own'}+{tmp_path / 'folder'}"
    assert to_shards(both, tmp_path / "out") == 2
    assert "convert each data set by itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_joined_shards_are_the_joined_folders(tmp_path):
    write_folder(tmp_path / "folder", SPLIT_PATHS)
    write_images(tmp_path / "own", ["1.png", "2.png"])
    assert to_shards(tmp_path / "folder", tmp_path / "shards", "--images_per_shard=3") == 0
    own = str(tmp_path / "own")
    expected = open_images(f"{own}+{tmp_path / 'folder'}")
    read = lambda source: [source.read(i) for i in range(len(source))]  # noqa: E731
    for path in (tmp_path / "shards", tmp_path / "shards" / "t{rain,est}-*.tar"):
        found = open_images(f"{own}+{path}")
        assert read(found.train) == read(expected.train) and len(read(found.train)) == 6
        assert found.train.labels.tolist() == expected.train.labels.tolist()
        assert read(found.test) == read(expected.test)


def test_digits_and_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(12) % 3, test_images=images[:2],
             test_labels=[2, 0])  # fmt: skip
    assert to_shards(tmp_path / "x.npz", tmp_path / "out") == 0
    sources = open_images(tmp_path / "out")
    assert sources.train.labels.tolist() == [0, 1, 2] * 4 and sources.test.labels.tolist() == [2, 0]
    read = [decode(sources.train.read(i), Decoding(512)) for i in range(12)]
    np.testing.assert_array_equal(read, images)


def test_names_with_the_same_key(tmp_path):
    names = ["a/1.JPG", "a/1.jpg", "a/1.png", "a/1_2.jpg", "a/1.2.jpg", "a/1.2.3.jpg", "b/1.jpg"]
    write_folder(tmp_path / "folder", names)
    assert to_shards(tmp_path / "folder", tmp_path / "out") == 0
    train = open_images(tmp_path / "out").train
    assert contents(train) == sorted(names) and train.labels.tolist() == [0] * 6 + [1]


def test_tfds(tmp_path):
    data_dir = tmp_path / "tfds"
    TinyColours(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    flag = f"--data_dir={data_dir}"
    assert to_shards("tfds:tiny_colours", tmp_path / "out", flag) == 0
    expected = open_sources(source="tfds:tiny_colours", path=str(data_dir), held_out=0.0, seed=0)
    found = open_images(tmp_path / "out")
    for a, b in ((expected.train, found.train), (expected.test, found.test)):
        assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]
        assert a.labels.tolist() == b.labels.tolist() and a.class_names == b.class_names


def test_data_without_classes_stay_without(tmp_path):
    write_folder(tmp_path / "folder", ["1.jpg", "a/2.jpg", "b/3.jpg"])  # an image beside folders
    assert to_shards(tmp_path / "folder", tmp_path / "out") == 0
    assert open_images(tmp_path / "out").train.labels is None


def test_images_are_encoded_smaller(tmp_path):
    write_images(tmp_path / "in", ["a/1.png", "b/2.png"], (60, 40))
    write_images(tmp_path / "in", ["b/3.png"], (20, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    write_images(tmp_path / "in", ["b/4.jpg"], (60, 40), exif=exif.tobytes())
    assert to_shards(tmp_path / "in", tmp_path / "out", "--side=32", "--quality=80") == 0
    train = open_images(tmp_path / "out").train
    assert [name.rpartition(".")[2] for name in train.names] == ["jpg", "jpg", "png", "jpg"]
    shapes = [decode(train.read(i), Decoding(512, exif_orientation=False)).shape for i in range(4)]
    assert shapes == [(48, 32, 3), (48, 32, 3), (20, 16, 3), (48, 32, 3)]
    assert decode(train.read(3), Decoding(512)).shape == (32, 48, 3)  # turned upright
    assert train.read(2) == (tmp_path / "in/b/3.png").read_bytes()
    before = Image.open(tmp_path / "in/a/1.png").resize((32, 48), Image.Resampling.LANCZOS)
    after = decode(train.read(0), Decoding(512))
    assert np.abs(np.asarray(before, float) - after).mean() < 3  # of JPEG


def test_unreadable_images_are_left_out(tmp_path, capsys):
    write_images(tmp_path / "in", [f"{c}/{i}.jpg" for c in "ab" for i in range(5)])
    (tmp_path / "in/b/2.jpg").write_bytes(b"damaged")
    assert to_shards(tmp_path / "in", tmp_path / "out", "--side=8") == 0
    printed = capsys.readouterr()
    assert "9 images in 1 shard" in printed.out and "1 unreadable image left out" in printed.out
    assert "left out" in printed.err and "b/2.jpg" in printed.err
    assert len(open_images(tmp_path / "out").train) == 9
    (tmp_path / "in/b/3.jpg").write_bytes(b"damaged")
    assert to_shards(tmp_path / "in", tmp_path / "other", "--side=8") == 2
    assert "can't be read, more than --max_bad_fraction=0.01" in (capsys.readouterr().err)


def test_conversion_continues(tmp_path, monkeypatch):
    write_images(tmp_path / "in", [f"{c}/{i}.jpg" for c in "ab" for i in range(10)])
    assert to_shards(tmp_path / "in", tmp_path / "whole", "--images_per_shard=4") == 0
    plain, written = shards_lib._written, []

    def stop(target, *rest):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target.name)
        return plain(target, *rest)

    monkeypatch.setattr(shards_lib, "_written", stop)
    assert to_shards(tmp_path / "in", tmp_path / "out", "--images_per_shard=4") == 2
    with pytest.raises(ValueError, match="was interrupted; run python -m moco_jax.data.prepare"):
        open_images(tmp_path / "out")
    (tmp_path / "out/.incomplete-train-000003.tar").write_bytes(b"x")
    os.truncate(tmp_path / "out/train-000001.tar", 100)
    monkeypatch.setattr(shards_lib, "_written", plain)
    done = (tmp_path / "out/train-000000.tar").stat().st_mtime_ns
    assert to_shards(tmp_path / "in", tmp_path / "out", "--images_per_shard=4") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert (tmp_path / "out/train-000000.tar").stat().st_mtime_ns == done
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))
    (tmp_path / "out/train-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match="1 shard of the 5 .* is missing: train-000002.tar"):
        open_images(tmp_path / "out")


def test_killed_conversion_continues(repository, tmp_path):
    write_images(tmp_path / "in", [f"{c}/{i}.png" for c in "ab" for i in range(40)], (300, 300))
    arguments = [f"--from={tmp_path / 'in'}", "--to=shards", f"--out={tmp_path / 'out'}",
                 "--images_per_shard=4", "--side=128"]  # fmt: skip
    command = [sys.executable, "-m", "moco_jax.data.prepare", *arguments]
    process = subprocess.Popen(command, cwd=repository)
    while process.poll() is None and len(list(tmp_path.glob("out/train-*.tar"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert prepare(*arguments) == 0
    assert to_shards(tmp_path / "in", tmp_path / "whole", "--images_per_shard=4", "--side=128") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_full_disk_is_one_message(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "in", ["a/1.jpg", "b/2.jpg"])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert to_shards(tmp_path / "in", tmp_path / "out") == 2
    message = "train-000000.tar: No space left on device; free some space, and run the same command"
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["shards.json"]


def test_bytes_that_change_on_the_disk_are_found(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "in", ["a/1.jpg", "b/2.jpg"])
    monkeypatch.setattr(shards_lib, "_digest", lambda path: "0")
    assert to_shards(tmp_path / "in", tmp_path / "out") == 2
    assert "on the disk are not those that were written" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


def test_other_contents_of_out_are_kept(tmp_path, capsys):
    write_folder(tmp_path / "in", ["a/1.jpg", "b/2.jpg"])
    write_folder(tmp_path / "mine", ["notes.txt"])
    assert to_shards(tmp_path / "in", tmp_path / "mine") == 2
    assert "holds other files (notes.txt); allowed: a new or an empty folder" in (
        capsys.readouterr().err
    )
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    (tmp_path / "mine/shards.json").write_text(json.dumps({"class_names": ["a"]}))
    assert to_shards(tmp_path / "in", tmp_path / "mine") == 2
    assert "holds shards that this command did not write" in capsys.readouterr().err
    assert to_shards(tmp_path / "in", tmp_path / "out") == 0
    assert to_shards(tmp_path / "in", tmp_path / "out") == 0
    assert "already converted" in capsys.readouterr().out
    about = json.loads((tmp_path / "out/shards.json").read_text())
    for shards in ([], {"train-000000.tar": {}}, {"train-000000.tar": 3}):
        (tmp_path / "out/shards.json").write_text(json.dumps(about | {"shards": shards}))
        assert to_shards(tmp_path / "in", tmp_path / "out") == 2
        assert "is damaged: its list of shards can't be used" in capsys.readouterr().err
    (tmp_path / "out/shards.json").write_text(json.dumps(about))
    assert to_shards(tmp_path / "in", tmp_path / "out", "--images_per_shard=1") == 2
    assert "holds a conversion of other flags" in capsys.readouterr().err
    write_folder(tmp_path / "in", ["a/3.jpg"])
    assert to_shards(tmp_path / "in", tmp_path / "out") == 2
    assert "holds a conversion of other images" in capsys.readouterr().err


def test_two_conversions_at_once(tmp_path, capsys):
    write_folder(tmp_path / "in", ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "out").mkdir()
    with shards_lib._locked(tmp_path / "out"):
        assert to_shards(tmp_path / "in", tmp_path / "out") == 2
    assert "another process writes to --out=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from=x", "--name=y"], "--name and --from can't be given together"),
        (["--from=x"], "--from needs --to and --out"),
        (["--name=x", "--side=3"], "--side has no effect without --from"),
        (["--from=x", "--manual_dir=y"], "--manual_dir has no effect without --name"),
        (["--from=absent", "--to=shards", "--out=o"], "there is no file or folder absent: corr"),
        (["--from=x", "--to=zip", "--out=o"], "--to=zip: value should be one of <shards>"),
        (["--from=x", "--quality=101"], "--quality=101"),
        (["--from=x", "--sides=3"], "--sides: there is no such flag; did you mean --side?"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert prepare(*arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "config" not in printed and not os.listdir(tmp_path)


def test_ambiguous_splits_name_a_flag(tmp_path, capsys):
    write_folder(tmp_path / "in", ["bus/1.jpg", "test/2.jpg"])
    assert to_shards(tmp_path / "in", tmp_path / "out") == 2
    assert "Set --train_split to the folder" in capsys.readouterr().err
    assert to_shards(tmp_path / "in", tmp_path / "out", "--train_split=bus") == 0


@pytest.mark.parametrize(
    ("names", "folder"),
    [(["a/b/1", "a/b/2"], "a/b/"), (["/x/1", "/y/1"], "/"), (["1", "2"], ""), (["a/1"], "a/")],
)
def test_common_folder(names, folder):
    assert common_folder(names) == folder


def test_same_bytes_whatever_the_threads(tmp_path):
    write_images(tmp_path / "in", [f"{c}/{i}.jpg" for c in "ab" for i in range(20)])
    sources = open_sources(source="images", path=str(tmp_path / "in"), held_out=0.0, seed=0)
    for threads in (1, 8):
        shards_lib.convert(
            sources, pathlib.Path(tmp_path / str(threads)), Encoding(side=8),
            images_per_shard=15, max_bad_fraction=0.0, threads=threads,
        )  # fmt: skip
    assert digests(tmp_path / "1") == digests(tmp_path / "8")


def write_compressed(path, count, rows, seed=0):
    """Writes a Parquet file of images in compressed row groups, not in the order of classes."""
    rng = np.random.default_rng(seed)
    data = [b"image %d " % i + b"x" * 100 for i in range(count)]
    labels = rng.integers(0, 3, count)
    table = pyarrow.table({"image": pyarrow.array(data, pyarrow.binary()), "label": labels,
                           "path": [f"{i:04}.jpg" for i in rng.permutation(count)]})  # fmt: skip
    pyarrow.parquet.write_table(table, path, row_group_size=rows, compression="snappy")
    return path


@pytest.mark.parametrize("joined", [False, True])
def test_compressed_row_groups_are_decoded_once_for_each_window(tmp_path, monkeypatch, joined):
    path = write_compressed(tmp_path / "x.parquet", 300, rows=30)
    source = write_compressed(tmp_path / "y.parquet", 30, rows=30) if joined else ""
    source = f"{path}+{source}" if joined else path
    monkeypatch.setattr(parquet, "_MAX_CACHE", 4000)  # holds one of the row groups
    monkeypatch.setattr(reading, "_FIRST", 100)
    decoded, decode_group = [], parquet._Reader._decode

    def decode_counted(self, group):
        decoded.append(group.number)
        return decode_group(self, group)

    monkeypatch.setattr(parquet._Reader, "_decode", decode_counted)
    monkeypatch.setattr(loader, "cores", lambda: 1)
    expected = contents(open_images(source).train)
    assert len(decoded) > 150  # in the order of the source
    decoded.clear()
    assert to_shards(source, tmp_path / "out", "--images_per_shard=70") == 0
    groups = 11 if joined else 10
    assert len(decoded) <= source_lib._SAMPLED + 2 * groups  # two windows: 100 images, the rest
    train = open_images(tmp_path / "out").train
    assert contents(train) == expected
    decoded.clear()
    monkeypatch.setattr(reading, "_MAX_BYTES", 100)  # less than an image
    assert to_shards(source, tmp_path / "small", "--images_per_shard=70") == 0
    assert len(decoded) > 3 * groups
    assert digests(tmp_path / "small") == digests(tmp_path / "out")
