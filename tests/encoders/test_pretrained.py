"""Encoders read from where runs and conversions leave them."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from moco_jax.config import flatten
from moco_jax.encoders import pretrained
from moco_jax.pretraining import pretrain
from moco_jax.training.checkpoints import PRETRAIN, Checkpoints
from tests.tiny import tiny_config, tiny_sources


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(steps=2, knn__every_epochs=0.0)
    state = pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())
    return folder, config, jax.device_get(state)


def test_a_run_gives_its_query_encoder_and_config(run):
    folder, config, state = run
    for path in (folder, str(folder), folder / "checkpoints" / "2"):
        got = pretrained.read(path)
        jax.tree.map(np.testing.assert_array_equal, got.variables["params"], state.params)
        jax.tree.map(np.testing.assert_array_equal, got.variables["batch_stats"], state.batch_stats)
        assert flatten(got.config) == flatten(config) and got.has_head
        assert "step 2" in got.source


def test_a_file_gives_back_what_was_written(run, tmp_path):
    written = pretrained.read(run[0])
    pretrained.write(tmp_path / "encoder.safetensors", written)
    got = pretrained.read(tmp_path / "encoder.safetensors")
    jax.tree.map(np.testing.assert_array_equal, got.variables, written.variables)
    assert flatten(got.config) == flatten(written.config) and got.source == written.source


def test_a_recipe_from_before_a_key_came_goes_on_with_the_keys_default(run, tmp_path):
    folder, config, _ = run
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    about = tmp_path / "checkpoints" / "2" / "about" / "metadata"
    saved = json.loads(about.read_text())
    for key in ("key_encoder", "bank.loss"):
        del saved["recipe"][key]
    about.write_text(json.dumps(saved))

    def check(recipe):
        with Checkpoints(tmp_path / "checkpoints", 2, recipe, PRETRAIN) as checkpoints:
            checkpoints.check()

    check(flatten(config))
    with pytest.raises(ValueError, match="key_encoder: 'momentum' in the checkpoint, 'none' now"):
        check(flatten(config) | {"key_encoder": "none"})


def test_other_things_are_refused_by_name(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        pretrained.read(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no checkpoint; allowed: a workdir"):
        pretrained.read(tmp_path)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="no safetensors file"):
        pretrained.read(tmp_path / "text")
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="format None, not 'moco_jax.encoder'"):
        pretrained.read(tmp_path / "other.safetensors")
    about = tmp_path / "other" / "about"
    about.mkdir(parents=True)
    (about / "metadata").write_text('{"kind": "moco_jax.linear"}')
    with pytest.raises(ValueError, match="kind 'moco_jax.linear', not 'moco_jax.pretrain'"):
        pretrained.read(tmp_path / "other")
