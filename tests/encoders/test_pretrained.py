"""Reads encoders from workdirs, checkpoints and files."""

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from moco_jax.encoders import pretrained
from moco_jax.pretraining import pretrain
from moco_jax.training.flat_config import flatten
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


def test_file_of_an_earlier_version_is_read(run, tmp_path):
    written, file = pretrained.read(run[0]), tmp_path / "encoder.safetensors"
    written.config.data.max_bad_fraction = 0.5
    pretrained.write(file, written)
    with safetensors.safe_open(file, framework="numpy") as opened:
        about = opened.metadata()
    about["recipe"] = about["recipe"].replace("data.max_bad_fraction", "data.max_bad_share")
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, metadata=about)
    assert pretrained.read(file).config.data.max_bad_fraction == 0.5


def test_error_for_a_path_that_is_not_an_encoder(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        pretrained.read(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no checkpoint; allowed: a workdir"):
        pretrained.read(tmp_path)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="text is not a safetensors file"):
        pretrained.read(tmp_path / "text")
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="format None, not 'moco_jax.encoder'"):
        pretrained.read(tmp_path / "other.safetensors")
    about = tmp_path / "other" / "about"
    about.mkdir(parents=True)
    (about / "metadata").write_text('{"kind": "moco_jax.linear"}')
    with pytest.raises(ValueError, match="kind 'moco_jax.linear', not 'moco_jax.pretrain'"):
        pretrained.read(tmp_path / "other")
