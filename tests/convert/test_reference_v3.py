"""Checkpoints of MoCo v3's authors are read, written and resumed, on both sides."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from moco_jax.contrastive.state import TrainState
from moco_jax.convert import targets
from moco_jax.convert.reference import find, read_state
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain
from moco_jax.pretraining.method import make_method
from moco_jax.weights import sources
from tests.convert import reference_v3 as reference
from tests.tiny import tiny_config, tiny_sources
from tests.weights.networks import (
    assert_close,
    assert_same,
    features,
    in_torch,
    library,
    random_images,
)

EPOCHS, EPOCH_STEPS = 3, 3
KINDS = ["vit", "conv", pytest.param("resnet", marks=pytest.mark.slow)]


def config(kind: str, **changes):
    common = {
        "steps": 10,
        "knn__every_epochs": 0.0,
        "dictionary": "in_batch",
        "symmetric": True,
        "bn_groups": 1,
        "shuffle_bn": False,
        "loss_scale": "2T",
        "temperature": reference.TEMPERATURE,
        "momentum": reference.MOMENTUM,
        "model__head": "mlp_bn",
        "model__hidden": reference.HIDDEN,
        "model__dim": reference.DIM,
        "model__predictor_layers": 2,
    }
    if kind == "resnet":
        own = {"model__width": 1.0, "model__head_layers": 2, "model__predictor_last_norm": False}
        own |= {"optimizer": "lars", "lr": 0.1, "weight_decay": 1e-6}
    else:
        own = {
            "model__name": "vit_small",
            "model__stem": "patch",
            "model__width": reference.WIDTH / 384,
            "model__patch": reference.PATCH,
            "model__heads": reference.HEADS,
            "model__depth": reference.DEPTH,
            "model__head_layers": 3,
            "model__freeze_patch": True,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.1,
        }
    if kind == "conv":
        own |= {"model__stem": "conv", "model__patch": 16, "model__freeze_patch": False}
        own |= {"data__image_size": 32, "data__eval_resize": 32}
    return tiny_config(**common | own | changes)


def views(kind: str, count: int = 1, dtype: Any = np.float32) -> np.ndarray:
    size = 32 if kind == "conv" else reference.SIZE
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 2, reference.BATCH, size, size, 3)).astype(dtype)


def as_torch(pair: np.ndarray):
    return library("torch").from_numpy(pair.transpose(0, 1, 4, 2, 3).copy())


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """The kind of a checkpoint, its path, its model and its content."""
    torch, kind = library("torch"), request.param
    path = tmp_path_factory.mktemp(kind) / "checkpoint_0002.pth.tar"
    model = reference.moco(kind)
    content = reference.checkpoint(
        kind, model, epochs=EPOCHS, epoch_steps=EPOCH_STEPS, views=as_torch(views(kind)[0])
    )
    torch.save(content, path)
    return kind, path, model, content


@pytest.fixture(scope="module")
def run(saved):
    """A workdir made from the checkpoint, and the printed lines."""
    kind, path, _, _ = saved
    out = path.with_name("workdir")
    return out, targets.write(sources.read(path, config(kind)), "workdir", out)


@pytest.fixture(scope="module")
def written(run):
    """The checkpoint made from that workdir, and the printed lines."""
    out = run[0].with_name("out.pth.tar")
    return out, targets.write(sources.read(run[0]), "moco", out, images=96)


def test_the_encoder_head_and_predictor_are_read(saved):
    kind, path, model, _ = saved
    read = sources.read(path, heads=None if kind == "resnet" else reference.HEADS)
    assert read.title == "a pretraining checkpoint of MoCo v3, epoch 3"
    assert read.left_out == ["the key encoder", "the optimizer"]
    found, expected = read.pretrained, config(kind).model
    for key in ("head", "head_layers", "hidden", "dim", "predictor_layers", "predictor_last_norm"):
        assert found.config.model[key] == expected[key], key
    images = random_images(32 if kind == "conv" else reference.SIZE)
    encoder = model.base_encoder.eval()
    head = "fc" if kind == "resnet" else "head"
    projector = getattr(encoder, head)
    setattr(encoder, head, library("torch").nn.Identity())
    assert_close(features(found, images), in_torch(encoder, images))
    setattr(encoder, head, projector)
    predictor = found.variables["params"]["predictor"]["layer2"]["kernel"]
    np.testing.assert_array_equal(predictor, model.predictor[3].weight.detach().numpy().T)


def test_the_key_encoder_is_read_by_its_prefix(saved):
    kind, path, model, _ = saved
    heads = None if kind == "resnet" else reference.HEADS
    read = sources.read(path, prefix="state_dict.momentum_encoder", heads=heads)
    params = read.pretrained.variables["params"]
    assert params.keys() == {"backbone", "head"}
    head = model.momentum_encoder.fc if kind == "resnet" else model.momentum_encoder.head
    np.testing.assert_array_equal(
        params["head"]["layer1"]["kernel"], head[0].weight.detach().numpy().T
    )


def test_a_run_resumes_with_everything_in_the_checkpoint(saved, run, capsys):
    kind, _, model, content = saved
    folder, lines = run
    assert lines[0] == "step 9: 3 epochs of 3 steps each"
    state = pretrain.pretrain(
        config(kind, steps=9), folder, devices=jax.devices()[:1], sources=tiny_sources()
    )
    assert "already at step 9" in capsys.readouterr().out
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    assert {int(count) for _, count in counts} == {9}
    names = [name for name, _ in model.named_parameters()]
    layer = ("head", "layer1", "kernel")
    theirs = "fc.0.weight" if kind == "resnet" else "head.0.weight"
    number = names.index(f"base_encoder.{theirs}")
    for ours, kinds in (("mu", "exp_avg"), ("nu", "exp_avg_sq"), ("trace", "mu")):
        buffer = content["optimizer"]["state"][number].get(kinds)
        if buffer is not None:
            found = optax.tree.get(state.opt_state, ours)[layer[0]][layer[1]][layer[2]]
            np.testing.assert_array_equal(found, buffer.numpy().T)
    for got, encoder in (
        (state.params, model.base_encoder),
        (state.key_params, model.momentum_encoder),
    ):
        want = encoder.state_dict()[theirs].numpy().T
        np.testing.assert_array_equal(got["head"]["layer1"]["kernel"], want)
    assert "predictor" not in state.key_params
    mean = model.predictor[1].running_mean.numpy()
    np.testing.assert_array_equal(state.batch_stats["predictor"]["norm1"]["mean"], mean)


def test_a_checkpoint_survives_both_ways(saved, written):
    torch = library("torch")
    content, (path, lines) = saved[3], written
    assert lines[0] == "step 9: 3 epochs of 3 steps each"
    back = torch.load(path, weights_only=True)
    assert back["epoch"] == content["epoch"] and back["scaler"] == content["scaler"]
    assert list(back["state_dict"]) == list(content["state_dict"])
    for name, array in content["state_dict"].items():
        if name.endswith("pos_embed"):  # computed by both
            torch.testing.assert_close(back["state_dict"][name], array, rtol=0, atol=1e-6)
        else:
            assert torch.equal(back["state_dict"][name], array), name
    given, got = content["optimizer"], back["optimizer"]
    assert got["param_groups"][0]["params"] == given["param_groups"][0]["params"]
    assert got["state"].keys() == given["state"].keys()
    for number, state in given["state"].items():
        assert got["state"][number].keys() == state.keys()
        for kind, array in state.items():
            assert torch.equal(got["state"][number][kind], array), (number, kind)


def test_both_programs_take_the_same_steps(saved, run, written):
    """Three steps in float64."""
    kind = saved[0]
    model = reference.moco(kind)
    optimizer, epoch = reference.resume(written[0], model, kind, double=True)
    assert epoch == EPOCHS
    pairs = views(kind, 3, np.float64)
    if kind != "resnet":  # ours are computed in float64
        for encoder in (model.base_encoder, model.momentum_encoder):
            encoder.pos_embed.data.copy_(reference.table(2, reference.WIDTH))
    want = [reference.train(model, optimizer, as_torch(pair)) for pair in pairs]
    with jax.enable_x64(True):
        state, got = _steps(kind, run[0], pairs)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    ours = state.params["predictor"]["layer1"]["kernel"]
    theirs = model.predictor[0].weight.detach().numpy().T
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


def _steps(kind, folder, pairs):
    """Returns our state and losses after steps with these views, from the workdir's checkpoint."""
    layout = make_layout(jax.devices()[:1])
    method = make_method(config(kind, dtype="float64"), layout, 96)
    saved = jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else x.dtype),
        read_state(folder).state,
    )
    opt_state = method.optimizer.init(saved["params"])
    for name in ("mu", "nu", "trace"):
        if (found := find(saved["opt_state"], name)) is not None:
            like = optax.tree.get(opt_state, name)
            values = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(found)}
            filled = jax.tree.map_with_path(
                lambda path, _, values=values: values[jax.tree_util.keystr(path)], like
            )
            opt_state = optax.tree.set(opt_state, **{name: filled})
    opt_state = optax.tree.set(opt_state, count=saved["step"])
    state = TrainState(**{"dictionary": ()} | saved | {"opt_state": opt_state})
    state = jax.device_put(state, method.state_shardings(state))
    step = jax.jit(method.train_step(), compiler_options={"xla_backend_optimization_level": 0})
    losses = []
    for pair in pairs:
        indices = np.zeros(reference.BATCH, np.int32)
        state, metrics = step(state, *layout.put_batch((tuple(pair), indices)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def test_the_encoder_alone_is_written(saved, tmp_path):
    """The reference's linear script loads `module.base_encoder.*` without the head."""
    torch, (kind, path, _, content) = library("torch"), saved
    read = sources.read(path, heads=None if kind == "resnet" else reference.HEADS)
    targets.write(read, "moco_encoder", tmp_path / "a.pth.tar")
    out = torch.load(tmp_path / "a.pth.tar", weights_only=True)["state_dict"]
    kept = ("module.base_encoder.", "module.predictor.")
    assert set(out) == {name for name in content["state_dict"] if name.startswith(kept)}
    reference.moco(kind).base_encoder.load_state_dict(
        {k.removeprefix(kept[0]): x for k, x in out.items() if k.startswith(kept[0])}
    )
    heads = None if kind == "resnet" else reference.HEADS
    back = sources.read(tmp_path / "a.pth.tar", heads=heads).pretrained
    assert_same(back.variables, read.pretrained.variables)


def test_errors_name_what_does_not_match(saved, tmp_path):
    torch, (kind, path, _, content) = library("torch"), saved
    patches = {"model__freeze_patch": kind == "conv"}
    for changes, message in (
        ({"dictionary": "queue", "symmetric": False}, "needs dictionary='in_batch' in --config"),
        ({"optimizer": "sgd"}, "needs optimizer='adamw' or 'lars' in --config"),
        ({"model__dim": 8}, "model.dim: 16 in the weights, 8 in the config"),
        ({"model__predictor_layers": 0}, "model.predictor_layers: 2 in the weights, 0 in"),
        ({"optimizer": "adamw" if kind == "resnet" else "lars"}, "it is not optimizer="),
        ({"lr": -1.0} if kind == "resnet" else patches, "lr=-1.0|freeze_patch"),
    ):
        with pytest.raises(ValueError, match=message):
            targets.write(sources.read(path, config(kind, **changes)), "workdir", tmp_path / "w")
    for drop, message in (
        ("module.momentum_encoder.", r"lacks momentum_encoder\.\*, which --to=workdir needs"),
        ("optimizer", "lacks the optimizer"),
        ("epoch", "contains no epoch"),
    ):
        less = {k: x for k, x in content.items() if k != drop}
        state = less["state_dict"].items()
        less["state_dict"] = {k: x for k, x in state if not k.startswith(drop)}
        torch.save(less, tmp_path / "v.pth.tar")
        with pytest.raises(ValueError, match=message):
            read = sources.read(tmp_path / "v.pth.tar", config(kind))
            targets.write(read, "workdir", tmp_path / "w")
    assert not (tmp_path / "w").exists()
