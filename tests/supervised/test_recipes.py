"""The shipped recipe of DeiT trains a small ViT, with everything that it draws in each step."""

import json
import shutil

import jax
import numpy as np
import pytest

from moco_jax.data.sources.source import Sources, array_source
from moco_jax.supervised import evaluate
from tests.test_configs import get

pytestmark = pytest.mark.slow
SIDE, STEPS = 16, 24


def bars(count: int, seed: int):
    """Returns images of a bright bar, horizontal or vertical, and which it is."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int32) % 2
    for image, label in zip(images, labels, strict=True):
        at = rng.integers(4, 12)
        np.swapaxes(image, 0, label)[at : at + 3] += 180
    return images, labels


@pytest.fixture(scope="module")
def sources():
    parts = [array_source(*bars(count, i), name) for i, (name, count) in enumerate(PARTS.items())]
    return Sources(*parts)


PARTS = {"train": 128, "test": 64}


def recipe(repository, variant="v3_vit_s", **changes):
    """Returns a variant of `imagenet_finetune.py` for a new ViT of 2 blocks and 24 channels."""
    config = get(repository, "imagenet_finetune", variant)
    config.update_from_flattened_dict(
        {
            "pretrained": "",
            "from_scratch": True,
            "model.name": "vit_tiny",
            "model.stem": "patch",
            "model.width": 0.125,
            "model.depth": 2,
            "model.patch": 4,
            "data.image_size": SIDE,
            "data.eval_resize": SIDE,
            "data.mean": (0.485, 0.456, 0.406),
            "data.std": (0.229, 0.224, 0.225),
            "epochs": None,
            "steps": STEPS,
            "batch_size": 32,
            "lr": 5e-3,
            "lr_batch": 32,
            "warmup_epochs": 1.0,
            "evaluate_every": 100.0,
            "log_every": 1,
            "checkpoint_every": 8,
        }
        | changes
    )
    return config


def losses(folder) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("variant", ["v3_vit_s", "mae_vit_b"])
def test_recipe_trains_and_continues_exactly(repository, sources, tmp_path, variant):
    one = jax.devices()[:1]
    evaluate.evaluate(recipe(repository, variant), tmp_path / "whole", devices=one, sources=sources)
    whole = losses(tmp_path / "whole")
    assert len(whole) == STEPS and np.isfinite(whole).all()
    assert np.mean(whole[-6:]) < np.mean(whole[:6])
    # Every draw follows from the seed and the step.
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / str(STEPS))
    evaluate.evaluate(recipe(repository, variant), tmp_path / "part", devices=one, sources=sources)
    assert losses(tmp_path / "part")[-8:] == whole[16:]


def test_recipe_of_two_devices_equals_that_of_one(repository, sources, tmp_path):
    found = []
    for devices in (1, 2):
        config = recipe(repository, steps=4)
        evaluate.evaluate(
            config, tmp_path / str(devices), devices=jax.devices()[:devices], sources=sources
        )
        found.append(losses(tmp_path / str(devices)))
    np.testing.assert_allclose(*found, rtol=1e-4)
