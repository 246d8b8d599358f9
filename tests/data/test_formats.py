"""A run is the same to the bit from a folder, a tar, a zip, and shards of the same images."""

import json
import shutil
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax.data.prepare import shards
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.source import fingerprint
from moco_jax.pretraining import pretrain
from tests.data.sources.stores import open_images
from tests.tiny import tiny_config

STEPS = 5


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{format: path} of 72 training and 16 test images in three classes."""
    root = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 5)):
        for number, name in enumerate(("ant", "bee", "cat bird")):
            (root / "folder" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (10, 12, 3), np.uint8) + np.uint8(80 * number)
                Image.fromarray(pixels).save(root / "folder" / split / name / f"{i}.png")
    for form in ("tar", "zip"):
        shutil.make_archive(str(root / "archive"), form, root / "folder")
    with zipfile.ZipFile(root / "stored.zip", "w") as archive:
        for path in sorted((root / "folder").rglob("*.png")):
            archive.write(path, path.relative_to(root / "folder"))
    sources = open_images(root / "folder")
    shards.convert(
        sources, root / "shards", Encoding(), images_per_shard=20, max_bad_fraction=0.0, threads=2
    )
    return {
        "folder": root / "folder",
        "tar": root / "archive.tar",
        "zip": root / "archive.zip",
        "stored": root / "stored.zip",
        "shards": root / "shards",
        "pattern": root / "shards/t{est,rain}-*.tar",
    }


FORMATS = ("tar", "zip", "stored", "shards", "pattern")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_same_images(places, form, held_out):
    options = {"held_out": held_out, "test_split": "" if held_out else "test"}
    expected, found = (open_images(places[name], **options) for name in ("folder", form))
    for a, b in ((expected.train, found.train), (expected.test, found.test)):
        assert fingerprint(a) == fingerprint(b) and len(a) == len(b)
        assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]
        np.testing.assert_array_equal(a.labels, b.labels)


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def run(path, workdir, steps):
    config = tiny_config(
        steps=steps, checkpoint_every=3, data__source="images", data__path=str(path),
        data__resident_megabytes=0, data__canvas=16,
    )  # fmt: skip
    return pretrain.pretrain(config, workdir)


@pytest.fixture(scope="module")
def expected(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return run(places["folder"], workdir, STEPS), losses(workdir)


@pytest.mark.parametrize("form", ["tar", "stored", "shards"])
def test_same_run(places, expected, tmp_path, form):
    state = run(places[form], tmp_path, STEPS)
    assert losses(tmp_path) == expected[1] and len(expected[1]) == STEPS
    jax.tree.map(np.testing.assert_array_equal, state, expected[0])


def test_run_continues_with_shards(places, expected, tmp_path):
    run(places["folder"], tmp_path, 3)
    state = run(places["shards"], tmp_path, STEPS)
    assert losses(tmp_path) == expected[1]
    jax.tree.map(np.testing.assert_array_equal, state, expected[0])
