"""The command that encodes images, and finds neighbours and duplicates."""

import csv
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax.data.sources.source import Source
from moco_jax.encoders import feature_file, pretrained
from moco_jax.encoders.embedding import embed
from moco_jax.parallel.mesh import make_layout
from tests.conftest import run_command
from tests.encoder_files import write_encoder
from tests.in_process import run_all
from tests.tiny import tiny_config, tiny_sources


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an encoder and images of two classes; one is unreadable, one is a copy."""
    folder = tmp_path_factory.mktemp("embed")
    write_encoder(folder / "encoder.safetensors", tiny_config(data__canvas=16))
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(9):
            image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
            image.save(folder / "images" / kind / f"{number}.png")
    (folder / "images" / "a" / "3.png").write_bytes(b"no image")
    copy = (folder / "images" / "a" / "7.png").read_bytes()
    (folder / "images" / "b" / "2.png").write_bytes(copy)
    (folder / "bad").mkdir()
    (folder / "bad" / "1.png").write_bytes(b"no image")
    images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.savez(folder / "one.npz", images=images)
    labels = np.zeros(3, np.int32)
    np.savez(folder / "two.npz", images=images, labels=labels, test_images=images[:2],
             test_labels=labels[:2])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def run(repository, place):
    return functools.partial(run_command, repository, "moco_jax.embed", cwd=place)


@pytest.fixture(scope="module")
def made(run, place):
    """What the command prints while it writes features.npz."""
    done = run("--encoder=encoder.safetensors", "--images=images", "--out=features.npz",
               "--batch_size=7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_features_equal_those_of_the_python_interface(made, place):
    got = feature_file.read(place / "features.npz")
    assert "3.png (no known image format" in made
    assert "features of 17 images of images; 1 image can't be read and is left out" in made
    expected = [f"images/{kind}/{n}.png" for kind in "ab" for n in range(9)]
    expected.remove("images/a/3.png")
    assert got.names.tolist() == expected
    assert got.labels is not None and got.labels.tolist() == [0] * 8 + [1] * 9
    assert got.class_names == ("a", "b")
    encoder = moco_jax.load(place / "encoder.safetensors")
    paths = [place / name for name in got.names]
    np.testing.assert_allclose(got.features, encoder(paths), atol=5e-3)
    assert np.ptp(got.features, axis=0).max() > 0.1


def test_neighbours_of_an_image(made, run):
    done = run("--encoder=encoder.safetensors", "--features=features.npz", "--format=json",
               "--query=images/b/2.png", "--query=images/a/0.png",
               "--neighbours=3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3] * 2
    assert [row["image"] for row in rows[:2]] == ["images/a/7.png", "images/b/2.png"]
    assert [row["class"] for row in rows[:2]] == ["a", "b"] and rows[1]["cosine"] > 0.9999
    assert rows[3]["image"] == rows[3]["query"] == "images/a/0.png"
    assert rows[4]["cosine"] < 0.9999


def test_fewer_neighbours_than_asked_are_told(run):
    done = run("--encoder=encoder.safetensors", "--images=two.npz", "--query=images/b/2.png",
               "--format=json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["rank"] for line in done.stdout.splitlines()] == [1, 2, 3]
    assert "3 neighbours (asked 10): there are no more\n" in done.stderr


def test_the_test_split_of_an_npz(run, place):
    done = run("--encoder=encoder.safetensors", "--images=two.npz", "--split=test",
               "--out=test.npz")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "test.npz: features of 2 images of two.npz, test\n" in done.stderr
    assert len(feature_file.read(place / "test.npz").names) == 2


def test_a_key_of_the_data_needs_no_config_file(run, place):
    done = run("--encoder=encoder.safetensors", "--images=images", "--out=b.npz",
               "--config.data.exclude=a", "--overwrite")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert feature_file.read(place / "b.npz").names.tolist() == [
        f"images/b/{number}.png" for number in range(9)
    ]


def test_duplicates_without_writing_a_file(run):
    done = run("--encoder=encoder.safetensors", "--images=images", "--duplicates=0.9999",
               "--format=csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    [row] = csv.DictReader(io.StringIO(done.stdout))
    assert (row["first"], row["second"]) == ("images/a/7.png", "images/b/2.png")


QUERIED = ["--encoder=encoder.safetensors", "--images=bad"]
ERRORS = [
    ([], "--encoder must be given, such as --encoder=runs/cifar10"),
    (["--encoder=encoder.safetensors"], "one of --out=features.npz, --query="),
    (["--encoder=none", "--out=x.npz"], "there is no encoder at"),
    (
        ["--encoder=encoder.safetensors", "--out=features.npz"],
        "exists; give another --out",
    ),
    (
        ["--features=features.npz", "--out=x.npz", "--encoder=e"],
        "--features can't be combined",
    ),
    (["--features=features.npz", "--query=a.jpg"], "--encoder must be given"),
    (
        ["--features=features.npz", "--encoder=encoder.safetensors", "--query=none.jpg"],
        "No such file or directory: 'none.jpg'",
    ),
    (["--encoder=encoder.safetensors", "--images=none", "--out=x.npz"], "or folder none"),
    (["--features=features.npz", "--duplicates=2"], "not a number in the range [-1, 1]"),
    (["--encoder=none", "--out=x.npz"], "--encoder=none: there is no encoder at"),
    (["--encoder=encoder.safetensors", "--images=none", "--out=x.npz"], "--images=none: there is"),
    (["--pictures=images"], "--pictures is now --images"),
    *[
        (["--features=features.npz", "--duplicates=0.9", flag], f"can't be combined with {name}: ")
        for flag, name in (
            ("--output=head", "--output"),
            ("--split=test", "--split"),
            ("--batch_size=3", "--batch_size"),
        )
    ],
    (
        ["--features=features.npz", "--duplicates=0.9", "--neighbours=3"],
        "--neighbours has no effect without --query",
    ),
    (
        ["--features=features.npz", "--duplicates=0.9", "--overwrite"],
        "--overwrite has no effect without --out",
    ),
    (
        ["--encoder=encoder.safetensors", "--out=x.npz", "--format=csv"],
        "--format has no effect without --query or --duplicates",
    ),
    # Before anything is encoded: the folder of --images has no image that can be read.
    (
        [*QUERIED, "--query=images/a/0.png", "--query=absent.jpg"],
        "--query=absent.jpg: No such file or directory",
    ),
    ([*QUERIED, "--query=images/a/3.png"], "--query=images/a/3.png can't be read: no known image"),
    ([*QUERIED, "--query=images"], "--query=images: can't read images: it is a folder"),
    (
        ["--encoder=encoder.safetensors", "--images=digits", "--split=val", "--out=x.npz"],
        "--split=val: there is no such split; allowed: train, test",
    ),
    (
        ["--encoder=encoder.safetensors", "--images=one.npz", "--split=test", "--out=x.npz"],
        "--split=test: there is no such split; allowed: train",
    ),
    (
        ["--features=features.npz", "--duplicates=0.9", "--config.data.exclude=a"],
        "--features can't be combined with --config",
    ),
    (
        ["--encoder=encoder.safetensors", "--images=images", "--out=x.npz",
         "--config.data.held_out=0.1"],
        "data.held_out has no effect here; allowed: data.bit_depth, ",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def errors(made, repository, place):
    return run_all(repository, "moco_jax.embed", [arguments for arguments, _ in ERRORS], place)


@pytest.mark.parametrize("case", range(len(ERRORS)), ids=[message for _, message in ERRORS])
def test_errors_are_one_message(errors, place, case):
    code, printed = errors[case]
    assert code == 2 and ERRORS[case][1] in printed
    assert printed.startswith("error: ") and "Traceback" not in printed
    assert not (place / "x.npz").exists()


@pytest.mark.parametrize("megabytes", [0, 100])
def test_unreadable_images_are_left_out(place, megabytes):
    read = pretrained.read(place / "encoder.safetensors")
    read.config.data.resident_megabytes = megabytes
    good = tiny_sources(9).train
    source = Source(
        "mixed", lambda i: b"bad" if i in (2, 8) else good.read(i), good.names, None, ()
    )
    layout = make_layout()
    parts = list(embed(read, source, layout, output="head", batch_size=8))
    assert np.concatenate([indices for _, indices in parts]).tolist() == [0, 1, 3, 4, 5, 6, 7]
    expected = moco_jax.load(place / "encoder.safetensors", output="head")
    images = [good.read(i) for i in (0, 1, 3, 4, 5, 6, 7)]
    features = np.concatenate([features for features, _ in parts])
    np.testing.assert_allclose(features, expected(images), atol=5e-3)
