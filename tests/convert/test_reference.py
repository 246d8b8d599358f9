"""The reference's pretraining resumes from a workdir, and a checkpoint survives both ways."""

import logging
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest

from moco_jax.contrastive.state import TrainState
from moco_jax.convert import targets
from moco_jax.convert.reference import find, read_state
from moco_jax.encoders import pretrained
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain
from moco_jax.pretraining.method import make_method
from moco_jax.training.integrity import checkpoint_files
from moco_jax.weights import sources, torch_files
from moco_jax.weights.moco_files import KEY, QUERY
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.convert import reference
from tests.tiny import tiny_config, tiny_sources
from tests.weights.networks import library

STEPS = 5


def config(**changes):
    wide = {"model__width": 1.0, "steps": 6, "knn__every_epochs": 0.0}
    return tiny_config(**wide | {"lr": 0.01, "momentum": 0.9} | changes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of 6 steps, which wrote rows 0 to 3 of its ring and then rows 0 and 1 again."""
    library("torch")
    folder = tmp_path_factory.mktemp("run") / "workdir"
    pretrain.pretrain(config(), folder, devices=jax.devices()[:1], sources=tiny_sources())
    return folder


@pytest.fixture(scope="module")
def written(workdir):
    """The checkpoint made from the workdir, and the printed lines."""
    out = workdir.with_name("out.pth.tar")
    return out, targets.write(sources.read(workdir), "moco", out)


def test_the_reference_loads_everything(workdir, written):
    torch = library("torch")
    model = reference.moco()
    optimizer, epoch = reference.resume(written[0], model)
    state = read_state(workdir).state
    assert epoch == 2 and written[1][0] == "step 6: 2 epochs of 3 steps each"
    assert int(model.queue_ptr) == 2 * reference.BATCH  # row 2 has the oldest keys
    np.testing.assert_array_equal(
        model.queue.T.reshape(4, reference.BATCH, -1), state["dictionary"]
    )
    own = dict(model.named_buffers())
    assert all(int(x) == 6 for name, x in own.items() if name.endswith("num_batches_tracked"))
    for prefix, kind in ((QUERY, ""), (KEY, "key_")):
        trees = {name: state[f"{kind}{name}"] for name in ("params", "batch_stats")}
        for name, array in to_torch(trees, NAMINGS["torchvision"], config()).items():
            if not name.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(model.state_dict()[prefix + name], array)
    (group,) = optimizer.param_groups
    assert [group[key] for key in ("lr", "momentum", "weight_decay")] == [0.01, 0.9, 1e-4]
    trace = to_torch(
        {"params": find(state["opt_state"], "trace")}, NAMINGS["torchvision"], config()
    )
    for name, parameter in model.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        assert (buffer is not None) == name.startswith(QUERY)
        if buffer is not None:
            np.testing.assert_array_equal(buffer, trace[name.removeprefix(QUERY)])
    assert torch.load(written[0], weights_only=True)["arch"] == "resnet10"


def test_both_programs_take_the_same_steps(workdir, written):
    """Five steps in float64, with one batch-norm group: the reference on one device."""
    torch = library("torch")
    model = reference.moco(momentum=config().momentum, temperature=config().temperature)
    optimizer, _ = reference.resume(written[0], model, double=True)
    rng = np.random.default_rng(0)
    views = rng.normal(size=(STEPS, 2, reference.BATCH, 8, 8, 3))
    want = [
        reference.train(model, optimizer, *torch.from_numpy(pair.transpose(0, 1, 4, 2, 3).copy()))
        for pair in views
    ]
    with jax.enable_x64(True):
        state, got = _steps(workdir, views)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    ring = model.queue.T.reshape(4, reference.BATCH, -1).numpy()
    np.testing.assert_allclose(state.dictionary, ring, rtol=0, atol=1e-9)
    for tree, encoder in ((state.params, model.encoder_q), (state.key_params, model.encoder_k)):
        ours = tree["backbone"]["stage3_block1"]["Conv_1"]["kernel"]
        theirs = encoder.layer3[0].conv2.weight.detach().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    mean = model.encoder_q.layer4[0].bn2.running_mean.numpy()
    ours = state.batch_stats["backbone"]["stage4_block1"]["GroupedBatchNorm_1"]["mean"]
    np.testing.assert_allclose(ours, mean, rtol=0, atol=1e-9 * np.abs(mean).max())


def _steps(workdir, views):
    """Returns our state and losses after steps with these views, from the workdir's checkpoint."""
    one_group = config(bn_groups=1, dtype="float64")
    layout = make_layout(jax.devices()[:1])
    method = make_method(one_group, layout, 96)
    saved = jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else x.dtype),
        read_state(workdir).state,
    )
    opt_state = method.optimizer.init(saved["params"])
    opt_state = optax.tree.set(
        opt_state, trace=find(saved["opt_state"], "trace"), count=saved["step"]
    )
    state = TrainState(**saved | {"opt_state": opt_state})
    state = jax.device_put(state, method.state_shardings(state))
    step = jax.jit(method.train_step(), compiler_options={"xla_backend_optimization_level": 0})
    losses = []
    for pair in views:
        indices = np.zeros(reference.BATCH, np.int32)
        state, metrics = step(state, *layout.put_batch((tuple(pair), indices)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_checkpoint_survives_both_ways(head, tmp_path):
    torch = library("torch")
    model = reference.moco(head)
    content = reference.checkpoint(model, epochs=3, epoch_steps=3)
    torch.save(content, tmp_path / "in.pth.tar")
    read = sources.read(tmp_path / "in.pth.tar", config(model__head=head))
    targets.write(read, "workdir", tmp_path / "run", images=96)
    lines = targets.write(sources.read(tmp_path / "run"), "moco", tmp_path / "out.pth.tar")
    assert lines[0] == "step 9: 3 epochs of 3 steps each"
    back = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    assert back["epoch"] == content["epoch"]
    assert back["state_dict"].keys() == content["state_dict"].keys()
    for name, array in content["state_dict"].items():
        assert torch.equal(back["state_dict"][name], array), name
    given, got = content["optimizer"], back["optimizer"]
    assert got["param_groups"][0]["params"] == given["param_groups"][0]["params"]
    assert got["state"].keys() == given["state"].keys()
    for number, state in given["state"].items():
        assert torch.equal(got["state"][number]["momentum_buffer"], state["momentum_buffer"])


def test_a_workdir_without_the_number_of_images_needs_it(tmp_path):
    torch = library("torch")
    content = reference.checkpoint(reference.moco(), epochs=3, epoch_steps=3)
    torch.save(content, tmp_path / "in.pth.tar")
    targets.write(sources.read(tmp_path / "in.pth.tar", config()), "workdir", tmp_path / "run")
    read = sources.read(tmp_path / "run")
    with pytest.raises(ValueError, match="set --training_images, such as"):
        targets.write(read, "moco", tmp_path / "out.pth.tar")
    lines = targets.write(read, "moco", tmp_path / "out.pth.tar", images=140)
    assert lines[:2] == [
        "step 9: 2 epochs of 4 steps each",
        "note: the last epoch is not complete (1 of 4 steps); the reference repeats it",
    ]
    targets.write(read, "moco_encoder", tmp_path / "encoder.pth.tar")


def test_only_the_encoder_is_written_of_a_source_without_a_state(workdir, tmp_path):
    torch = library("torch")
    targets.write(sources.read(workdir), "moco_jax", tmp_path / "a.safetensors")
    read = sources.read(tmp_path / "a.safetensors")
    lines = targets.write(read, "moco", tmp_path / "a.pth.tar")
    assert lines[0].startswith("only the encoder is written: ")
    assert lines[0].endswith("has no whole train state")
    state = torch.load(tmp_path / "a.pth.tar", weights_only=True)["state_dict"]
    assert all(name.startswith("module.encoder_q.") for name in state)


def damage_optimizer(checkpoint: pathlib.Path) -> None:
    """Changes one byte of a file so that the encoder is whole and the train state is not."""
    about, rng = checkpoint_files.read_about(checkpoint), np.random.default_rng(0)
    files = sorted(file for file in (checkpoint / "state").rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.stat().st_size, reverse=True)[:3]:
        data = file.read_bytes()
        for place in rng.integers(len(data), size=20):
            file.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
            try:
                pretrained.read(checkpoint)
                checkpoint_files.read_arrays(checkpoint, about, ("opt_state",))
            except checkpoint_files.Damaged:
                return
            except ValueError:
                pass
            file.write_bytes(data)
    raise AssertionError("no byte belongs to the optimizer only")


def test_encoder_and_optimizer_come_from_one_checkpoint(tmp_path, monkeypatch, caplog):
    """The newest checkpoint is damaged in its optimizer only, so its encoder can be read."""
    folder, written = tmp_path / "run", {}
    few = config(model__width=0.125, checkpoint_every=4)
    pretrain.pretrain(few, folder, devices=jax.devices()[:1], sources=tiny_sources())
    checkpoints = folder / "checkpoints"
    assert checkpoint_files.steps(checkpoints) == [6, 4]
    damage_optimizer(checkpoints / "6")
    source = sources.read(folder)
    assert "step 6" in source.pretrained.source
    with caplog.at_level(logging.WARNING):
        saved = read_state(folder)
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"the checkpoint {checkpoints / '6'} is damaged: ")
    assert warning.endswith("Step 4 is read instead.")
    assert saved.state["step"] == 4 and "step 4" in saved.encoder.source
    jax.tree.map(
        np.testing.assert_array_equal,
        saved.encoder.variables,
        pretrained.read(checkpoints / "4").variables,
    )
    monkeypatch.setattr(torch_files, "write", lambda file, content: written.update(content))
    lines = targets.TARGETS["moco"].write(source, tmp_path / "a", tmp_path / "a.pth.tar", None)
    assert lines[0].startswith("step 4: ")
    own = to_torch(saved.encoder.variables, NAMINGS["torchvision"], few)
    for name, array in own.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written["state_dict"][f"module.{QUERY}{name}"], array)
    shutil.rmtree(checkpoints / "4")
    with pytest.raises(ValueError, match="none of the checkpoints in .* is a whole"):
        read_state(folder)
