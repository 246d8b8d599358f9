"""Reads encoders from workdirs, checkpoints and files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from moco_jax.encoders import pretrained
from moco_jax.models.encoder import make_encoder, of_keys
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
    del about["checksum"]
    about["recipe"] = about["recipe"].replace("data.max_bad_fraction", "data.max_bad_share")
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, metadata=about)
    assert pretrained.read(file).config.data.max_bad_fraction == 0.5


def test_predictor_is_kept_and_checked(tmp_path):
    changes = {"head": "mlp_bn", "hidden": 24, "predictor_layers": 2}
    config = tiny_config(**{f"model__{key}": value for key, value in changes.items()})
    images = np.zeros((8, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(make_encoder(config).init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    written = pretrained.Pretrained(config, variables, "an encoder with a predictor")
    pretrained.write(tmp_path / "whole.safetensors", written)
    got = pretrained.read(tmp_path / "whole.safetensors")
    jax.tree.map(np.testing.assert_array_equal, got.variables, variables)

    del variables["params"]["predictor"]["layer2"]
    pretrained.write(tmp_path / "part.safetensors", written)
    with pytest.raises(ValueError, match="params/predictor/layer2/kernel is missing"):
        pretrained.read(tmp_path / "part.safetensors")

    less = {name: of_keys(tree) for name, tree in written.variables.items()}
    pretrained.write(tmp_path / "less.safetensors", dataclasses.replace(written, variables=less))
    assert pretrained.read(tmp_path / "less.safetensors").has_head


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "encoder.safetensors"
    pretrained.write(path, pretrained.read(run[0]))
    return path


def changed(file, folder, change, arrays=lambda arrays: arrays):
    """Writes a file with other metadata and arrays, without a checksum; returns its path."""
    with safetensors.safe_open(file, framework="numpy") as opened:
        about = opened.metadata()
    del about["checksum"]
    change(about)
    path = folder / "changed.safetensors"
    safetensors.numpy.save_file(arrays(safetensors.numpy.load_file(file)), path, metadata=about)
    return path


def recipe(**changes):
    """Returns a change of the recipe in a file's metadata."""

    def change(about):
        values = json.loads(about["recipe"])
        about["recipe"] = json.dumps(values | {k.replace("__", "."): v for k, v in changes.items()})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.pop("recipe"), "its metadata have no recipe"),
        (lambda about: about.pop("source"), "its metadata have no source"),
        (lambda about: about.update(checksun="1"), "unknown keys: checksun"),
        (lambda about: about.update(checksum="00000000"), "is damaged: its checksum is another"),
        (lambda about: about.update(recipe="{"), "its recipe is no JSON"),
        (lambda about: about.update(recipe="[" * 100_000), "its recipe is no JSON"),
        (lambda about: about.update(recipe="[1]"), "its recipe must be a JSON object"),
        (recipe(model__name="resnet999"), "model.name='resnet999' is unknown"),
        (recipe(model__name=3), "its recipe"),
        (recipe(model__name=["resnet10"]), "its recipe"),
        (recipe(model__width="wide"), "its recipe"),
        (recipe(model__width=-1.0), "must be above 0"),
        (recipe(model__width=1e308, model__name="vit_tiny"), "must be above 0, and at most 100"),
        (recipe(model__depth=2**31 - 1), "model.depth=2147483647 must be a whole number from 0"),
        (recipe(decoder__depth=2**31 - 1), "decoder.depth=2147483647 must be a whole number"),
        (recipe(model__dim=-3), "its recipe"),
        (recipe(model__dim=2**70), "its recipe"),
        (recipe(adam_b2=10**400), "its recipe is not a config of moco_jax: int too large"),
        (recipe(bn_groups=0), "bn_groups=0 must be"),
        (recipe(dtype="float7"), "dtype='float7' is unknown"),
        (recipe(data__mean=[1, 2]), "data.mean"),
        (recipe(data__mean="grey"), "its recipe"),
        (recipe(data__image_size={"a": 1}), "its recipe"),
        (recipe(model__width=0.25), "not those of its recipe's resnet10: .* has the shape"),
        (recipe(model__name="resnet18"), "not those of its recipe's resnet18: .* is missing"),
    ],
)  # fmt: skip
def test_tampered_metadata_of_a_file_are_one_clear_error(file, tmp_path, change, message):
    path = changed(file, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.read(path)
    assert str(error.value).startswith(str(path))


STEM = "params/backbone/stem_conv/kernel"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (lambda x: {k: v for k, v in x.items() if k != STEM}, "kernel is missing"),
        (lambda x: x | {STEM: x[STEM][..., :1]}, "has the shape"),
        (lambda x: x | {STEM: x[STEM] * np.nan}, f"NaN or infinite values in {STEM}"),
        (lambda x: x | {STEM: x[STEM] * np.inf}, f"NaN or infinite values in {STEM}"),
        (lambda x: x | {STEM: x[STEM].astype(np.int32)}, f"not floating-point numbers: {STEM}"),
        (lambda x: x | {"params/extra/kernel": x[STEM]}, "extra/kernel is not one of them"),
        (lambda x: x | {"params": x[STEM]}, "names of its arrays|is not one of them|missing"),
        (lambda x: x | {"": x[STEM]}, "not those of"),
        (lambda x: {}, "is missing"),
        (lambda x: {"params/backbone": x[STEM]}, "is missing"),
    ],
)
def test_wrong_arrays_of_a_file_are_one_clear_error(file, tmp_path, arrays, message):
    path = changed(file, tmp_path, lambda about: None, arrays)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.read(path)
    assert str(error.value).startswith(str(path))


def test_every_changed_byte_of_a_file_is_found(file, tmp_path):
    """Only JSON's spaces may change: the header is padded with them."""
    data, whole = file.read_bytes(), pretrained.read(file)
    path, rng = tmp_path / "changed.safetensors", np.random.default_rng(0)
    length = int.from_bytes(data[:8], "little")
    positions = [*range(16), *rng.integers(8, 8 + length, 60), *rng.integers(length, len(data), 30)]
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            got = pretrained.read(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
        else:
            jax.tree.map(np.testing.assert_array_equal, got.variables, whole.variables)
            assert got.source == whole.source and flatten(got.config) == flatten(whole.config)


def test_a_file_is_written_as_a_whole_or_not_at_all(file, tmp_path, monkeypatch):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(file.read_bytes())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pretrained.write(path, pretrained.read(file))
    assert path.read_bytes() == file.read_bytes() and len(list(tmp_path.iterdir())) == 1


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
    (about / "metadata").write_text('{"kind": "moco_jax.linear", "recipe": {}, "step": 1}')
    with pytest.raises(ValueError, match="kind 'moco_jax.linear', not 'moco_jax.pretrain'"):
        pretrained.read(tmp_path / "other")
