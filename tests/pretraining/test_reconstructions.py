"""A masked run shows the same images at each evaluation, and nothing of it changes by that."""

import json

import numpy as np
import pytest
from PIL import Image

from moco_jax.pretraining import reconstructions
from moco_jax.pretraining.pretrain import pretrain
from tests.tiny import tiny_config, tiny_sources

VIT = {
    "pretext": "masked",
    "steps": 2,
    "model.name": "vit_tiny",
    "model.stem": "patch",
    "model.patch": 2,
    "model.depth": 1,
    "model.width": 0.125,
    "decoder.dim": 16,
    "decoder.depth": 1,
    "decoder.heads": 2,
}


def run(folder, **changes):
    """Pretrains two steps; returns the losses."""
    config = tiny_config()
    config.update_from_flattened_dict(VIT | changes)
    pretrain(config, folder, sources=tiny_sources())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    return folder, run(folder, log_views=True)


def test_visible_patches_are_those_of_the_image_and_others_are_predicted(shown):
    image = np.asarray(Image.open(shown[0] / reconstructions.FILE))
    size = 64  # 8 pixels are enlarged
    assert image.shape == (8 * (size + 4) - 4, 3 * (size + 4) - 4, 3)
    cells = [image[:size, left : left + size] for left in range(0, image.shape[1], size + 4)]
    original, masked, predicted = cells
    hidden = (masked == 127).all(axis=-1)
    assert hidden.mean() == 0.75
    np.testing.assert_array_equal(masked[~hidden], original[~hidden])
    np.testing.assert_array_equal(predicted[~hidden], original[~hidden])
    assert (predicted[hidden] != original[hidden]).any()
    # The mean of a patch is the image's: the network predicts without it.
    assert abs(predicted[hidden].mean() - original[hidden].mean()) < 30


def test_a_run_that_shows_nothing_has_the_same_losses(shown, tmp_path):
    assert run(tmp_path) == shown[1]
    assert not (tmp_path / reconstructions.FILE).exists()


def test_a_failure_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(reconstructions, "_save", full)
    run(tmp_path, log_views=True, steps=1)
    assert "no reconstructions: OSError: the disk is full" in caplog.text
