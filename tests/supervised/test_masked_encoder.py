"""Evaluation of an encoder that masking pretrained: MAE's linear classifier and fine-tuning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moco_jax
from moco_jax.encoders import pretrained
from moco_jax.encoders.knn_accuracy import measure
from moco_jax.models.backbones import make_backbone
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.pretrain import pretrain
from moco_jax.supervised import cached, evaluate, step, validation
from moco_jax.supervised.run import fit_start, make_updates
from moco_jax.supervised.start import begin
from tests.supervised.tiny import FAST, task_config, write_encoder
from tests.tiny import tiny_config, tiny_sources

VIT = {
    "model__name": "vit_tiny",
    "model__stem": "patch",
    "model__patch": 4,
    "model__depth": 2,
    "model__heads": 2,
}
MAE = {
    "model__positions": "learned",
    "model__pool": "mean",
    "model__drop_path": 0.1,
    "fresh_norm": True,
    "head_lr": 1.0,
    "optimizer": "adamw",
    "decay_all": False,
    "weight_decay": 0.5,
    "layer_decay": 0.5,
    "lr": 1e-3,
}
MAE_LINEAR = {"lr": (0.1, 1.0), "optimizer": "lars", "feature_norm": True}
ONE = jax.devices()[:1]
FEATURES = 24


def write(path, **changes):
    """Writes a ViT whose last norm is not a new one; returns its path."""
    config = tiny_config(**VIT | changes)
    images = jnp.zeros((2, 8, 8, 3))
    backbone = make_backbone(config.model).init(jax.random.key(3), images, train=False)["params"]
    backbone = jax.device_get(backbone)
    backbone["norm"] = {"scale": np.full(FEATURES, 1.5, np.float32), "bias": np.ones(FEATURES)}
    backbone["norm"]["bias"] = backbone["norm"]["bias"].astype(np.float32)
    variables = {"params": {"backbone": backbone}}
    pretrained.write(path, pretrained.Pretrained(config, variables, "a masked one"))
    return str(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of masked pretraining."""
    folder = tmp_path_factory.mktemp("masked")
    decoder = {"decoder__dim": 16, "decoder__depth": 1, "decoder__heads": 2}
    config = tiny_config(**VIT, **decoder, pretext="masked", steps=2, checkpoint_every=2)
    config.views = config.views[:1]
    pretrain(config, folder, devices=ONE, sources=tiny_sources())
    return folder


def features(begun, images):
    return np.asarray(begun.backbone.apply({"params": begun.params}, images, train=False))


def test_it_has_a_decoder_and_no_head(workdir, tmp_path):
    read = pretrained.read(workdir)
    assert set(read.variables["params"]) == {"backbone", "decoder"} and not read.has_head
    pretrained.write(tmp_path / "a.safetensors", read)
    again = pretrained.read(tmp_path / "a.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, read.variables)
    alone = {"params": {"backbone": read.variables["params"]["backbone"]}}
    pretrained.write(tmp_path / "b.safetensors", dataclasses.replace(read, variables=alone))
    image = [np.arange(300, dtype=np.uint8).reshape(10, 10, 3)]
    found = [moco_jax.load(path)(image) for path in (workdir, tmp_path / "b.safetensors")]
    assert found[0].shape == (1, FEATURES)
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match="has no head; allowed: output='backbone'"):
        moco_jax.load(workdir, output="head")


def test_its_neighbours_are_found_by_its_features(workdir):
    read, options = pretrained.read(workdir), dict(ks=(5,), temperatures=(0.1,))
    options["layout"] = make_layout(ONE)
    (row,) = measure(read, tiny_sources(), read.config.data, **options)
    assert row[1] == 5 and 0 <= row[3] <= 100
    with pytest.raises(ValueError, match="has no head; allowed: output='backbone'"):
        list(measure(read, tiny_sources(), read.config.data, output="head", **options))


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_a_supervised_task_starts_from_it(workdir, tmp_path, task):
    own = {"linear": MAE_LINEAR, "finetune": MAE}[task]
    rows = evaluate.evaluate(
        task_config(task, workdir, steps=2, bn_groups=2, **own),
        tmp_path / "run",
        devices=jax.devices()[:2],
        sources=tiny_sources(),
    )
    assert all(row.finite and 0 <= row.top1 <= 100 for row in rows)


@pytest.mark.parametrize("positions", ["sincos", "sincos_mae"])
def test_learned_positions_start_as_the_encoders_fixed_ones(tmp_path, positions):
    path = write(tmp_path / "a.safetensors", model__positions=positions)
    fixed = begin(task_config("finetune", path))
    learned = begin(task_config("finetune", path, model__positions="learned"))
    assert "positions" not in fixed.params and fixed.config.model.positions == positions
    assert learned.params["positions"].shape == (1, 1 + 4, FEATURES)
    np.testing.assert_array_equal(learned.params["positions"][0, 0], 0)
    assert f"model.positions is learned here; the encoder was trained with {positions}" in (
        learned.notes
    )
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(features(learned, images), features(fixed, images), atol=1e-6)
    # They are those of the images of this run.
    larger = begin(task_config("finetune", path, model__positions="learned", data__image_size=16))
    assert larger.params["positions"].shape == (1, 1 + 16, FEATURES)


def test_learned_positions_of_an_encoder_stay(tmp_path):
    path = write(tmp_path / "a.safetensors", model__positions="learned")
    own = pretrained.read(path).variables["params"]["backbone"]["positions"]
    for given in ("sincos", "learned"):
        begun = begin(task_config("finetune", path, model__positions=given))
        np.testing.assert_array_equal(begun.params["positions"], own)
    assert begin(task_config("linear", path)).backbone.positions == "learned"


def test_the_last_norm_starts_anew(tmp_path):
    path = write(tmp_path / "a.safetensors")
    old, new = (begin(task_config("finetune", path, fresh_norm=fresh)) for fresh in (False, True))
    np.testing.assert_array_equal(old.params["norm"]["scale"], 1.5)
    np.testing.assert_array_equal(new.params["norm"]["scale"], 1)
    np.testing.assert_array_equal(new.params["norm"]["bias"], 0)
    assert old.params.keys() == new.params.keys()
    # The identity of the encoder is that of what was read.
    assert old.content == new.content


def test_a_resnet_has_neither(tmp_path):
    path = write_encoder(tmp_path / "a.safetensors")
    config = task_config("finetune", path, fresh_norm=True)
    with pytest.raises(ValueError, match="fresh_norm=True starts the last norm of a ViT anew"):
        fit_start(begin(config), tmp_path, 1, None)
    begun = begin(task_config("finetune", path, model__positions="learned"))
    assert "model.positions=learned has no effect: the encoder has sincos" in begun.notes
    own = task_config(
        "finetune", from_scratch=True, model__name="resnet10", model__positions="learned"
    )
    with pytest.raises(ValueError, match="model.positions='learned' is a key of a ViT"):
        validation.check(own, 1)


# Layers of 2 blocks are numbered 0 (patches, class token, positions), 1, 2, 3 (norm).
RATES = {"block1": 0.5**2, "block2": 0.5, "norm": 1.0, "head": 1.0}


def first_state(config):
    """Returns the state at step 0, the step and the start of a fine-tuning."""
    begun = begin(config)
    _, optimizer = make_updates(begun.config, begun.backbone.blocks, 3)
    variables = {"params": begun.params, "batch_stats": begun.batch_stats}
    init = functools.partial(step.init_state, begun.config, begun, 4, optimizer)
    state = jax.jit(init, compiler_options=FAST)(variables)
    return state, step.make_step(begun.config, begun, optimizer, make_layout(ONE))


def test_fine_tuning_as_maes_moves_each_parameter_by_its_rate(tmp_path):
    """Adam's first step is the sign of the gradient, times the rate; kernels decay too."""
    path = write(tmp_path / "a.safetensors", model__positions="sincos_mae")
    state, train_step = first_state(task_config("finetune", path, **MAE, head_std=0.5))
    labels = np.arange(32) % 4
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)) + labels[:, None, None, None]
    after, _ = jax.jit(train_step)(state, images.astype(np.float32), np.eye(4)[labels])
    moved = jax.tree.map(
        lambda a, b: (np.asarray(a - b), np.asarray(a)), state.params, after.params
    )
    found = jax.tree_util.tree_leaves_with_path(moved, is_leaf=lambda x: isinstance(x, tuple))
    assert len(found) == 2 + 4 + 2 * 12 + 2
    for path, (distance, before) in found:
        names = [entry.key for entry in path]
        rate = 1e-3 * RATES.get(names[0], RATES.get(names[min(1, len(names) - 1)], 0.5**3))
        sign = distance / rate - (0.5 * before if names[-1] == "kernel" else 0)
        assert np.abs(sign).max() == pytest.approx(1, abs=0.02), names


def test_the_deviation_of_a_new_classifier(tmp_path):
    path = write(tmp_path / "a.safetensors")
    for changes, std in (({}, 0.01), ({"head_std": 2e-5}, 2e-5)):
        state, _ = first_state(task_config("finetune", path, **changes))
        assert np.asarray(state.params["head"]["kernel"]).std() == pytest.approx(std, rel=0.3)
        np.testing.assert_array_equal(state.params["head"]["bias"], 0)


@pytest.mark.parametrize("cached", [False, True])
def test_the_linear_classifier_normalises_features(tmp_path, capsys, cached):
    path = write(tmp_path / "a.safetensors")
    config = task_config("linear", path, **MAE_LINEAR, bn_groups=2, cached=cached)
    rows = evaluate.evaluate(
        config, tmp_path / "run", devices=jax.devices()[:2], sources=tiny_sources()
    )
    assert all(row.finite for row in rows)
    note = "no batch norm; features normalised in 2 batch-norm groups"
    assert (note in capsys.readouterr().out) is not cached


def test_cached_features_are_normalised_by_those_of_training():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(5, 3, (n, 7)).astype(np.float32) for n in (50, 20))
    train[:, 0] = test[:, 0] = 4.0
    wide = train.astype(np.float64)
    root = np.sqrt(wide.var(axis=0) + 1e-6)
    for got, x in zip(cached._normalized(train, test), (train, test), strict=True):
        np.testing.assert_allclose(got, (x - wide.mean(axis=0)) / root, atol=1e-4)
