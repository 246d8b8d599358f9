"""Reads and writes the reference's checkpoints, and resumes its run."""

import jax
import numpy as np
import optax
import pytest

from moco_jax.convert import targets
from moco_jax.pretraining import pretrain
from moco_jax.weights import sources
from tests.convert import reference
from tests.tiny import tiny_config, tiny_sources
from tests.weights.networks import (
    assert_close,
    assert_same,
    in_torch,
    library,
    projection,
    random_images,
)
from tests.weights.networks import source as ours

EPOCHS, EPOCH_STEPS = 3, 3  # 9 steps fill the ring of 4 rows; its next row is 1


def kernel(weight) -> np.ndarray:
    return weight.detach().numpy().transpose(2, 3, 1, 0)


def config(**changes):
    return tiny_config(**{"model__width": 1.0, "steps": 10, "knn__every_epochs": 0.0} | changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a checkpoint, its model and its content."""
    torch, path = library("torch"), tmp_path_factory.mktemp("moco") / "checkpoint_0002.pth.tar"
    model = reference.moco()
    content = reference.checkpoint(model, epochs=EPOCHS, epoch_steps=EPOCH_STEPS)
    torch.save(content, path)
    return path, model, content


@pytest.fixture(scope="module")
def run(saved, tmp_path_factory):
    """A workdir made from the checkpoint, and the lines to print."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    lines = targets.write(sources.read(saved[0], config()), "workdir", folder)
    return folder, lines


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_the_encoder_is_read_and_written(head, tmp_path):
    torch = library("torch")
    model = reference.moco(head)
    content = reference.checkpoint(model, epochs=1, epoch_steps=2)
    torch.save(content, tmp_path / "v.pth.tar")
    read = sources.read(tmp_path / "v.pth.tar")
    kept = read.pretrained.config.model
    assert (kept.name, kept.stem, kept.head, kept.dim, kept.hidden) == (
        "resnet10",
        "small",
        head,
        reference.DIM,
        0,
    )
    assert read.left_out == ["the key encoder", "the queue", "the optimizer"]
    images = random_images(8)
    want = in_torch(model.encoder_q.eval(), images)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert_close(projection(read.pretrained, images), want)

    targets.write(read, "moco_encoder", tmp_path / "out.pth.tar")
    out = torch.load(tmp_path / "out.pth.tar", weights_only=True)["state_dict"]
    given = {k: x for k, x in content["state_dict"].items() if k.startswith("module.encoder_q.")}
    assert set(out) == set(given)
    for name, array in out.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(array, given[name]), name
    assert_same(
        sources.read(tmp_path / "out.pth.tar").pretrained.variables, read.pretrained.variables
    )


def test_the_references_linear_script_loads_the_written_file(tmp_path):
    """The script loads `module.encoder_q.*` without `fc` and requires that only `fc` is missing."""
    torch, torchvision = library("torch"), library("torchvision")
    targets.write(
        ours(name="resnet18", stem="imagenet", width=1.0), "moco_encoder", tmp_path / "v.pth.tar"
    )
    state = torch.load(tmp_path / "v.pth.tar", weights_only=True)["state_dict"]
    prefix = "module.encoder_q."
    loaded = {
        k.removeprefix(prefix): x for k, x in state.items() if not k.startswith(f"{prefix}fc")
    }
    assert len(loaded) < len(state) and all(name.startswith(prefix) for name in state)
    result = torchvision.models.resnet18().load_state_dict(loaded, strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"} and not result.unexpected_keys


def test_a_run_resumes_with_everything_in_the_checkpoint(saved, run, capsys):
    _, model, content = saved
    folder, lines = run
    steps = EPOCHS * EPOCH_STEPS
    assert lines[0] == "step 9: 3 epochs of 3 steps each"
    state = pretrain.pretrain(
        config(steps=steps), folder, devices=jax.devices()[:2], sources=tiny_sources()
    )
    printed = capsys.readouterr()
    assert "already at step 9" in printed.out
    assert "the checkpoint saw" not in printed.err  # it does not contain the number of images
    assert int(state.step) == steps == int(optax.tree.get(state.opt_state, "count"))

    for got, encoder in ((state.params, model.encoder_q), (state.key_params, model.encoder_k)):
        np.testing.assert_array_equal(
            got["backbone"]["stage2_block1"]["Conv_1"]["kernel"],
            kernel(encoder.layer2[0].conv2.weight),
        )
    for got, encoder in (
        (state.batch_stats, model.encoder_q),
        (state.key_batch_stats, model.encoder_k),
    ):
        got = got["backbone"]["stage2_block1"]["shortcut_norm"]["mean"]
        np.testing.assert_array_equal(got, encoder.layer2[0].downsample[1].running_mean)
    trace = optax.tree.get(state.opt_state, "trace")
    buffers = content["optimizer"]["state"]
    names = [name for name, _ in model.named_parameters()]
    number = names.index("encoder_q.layer3.0.conv1.weight")
    np.testing.assert_array_equal(
        trace["backbone"]["stage3_block1"]["Conv_0"]["kernel"],
        kernel(buffers[number]["momentum_buffer"]),
    )

    # The next step writes row 9 % 4 = 1; `queue_ptr` is where the reference writes next.
    queue, pointer = model.queue.numpy().T, int(model.queue_ptr)
    assert pointer == 32
    np.testing.assert_array_equal(state.dictionary[1], queue[32:64])  # the oldest
    np.testing.assert_array_equal(state.dictionary[2], queue[64:96])
    np.testing.assert_array_equal(state.dictionary[3], queue[96:])
    np.testing.assert_array_equal(state.dictionary[0], queue[:32])  # the newest


def test_another_batch_size_needs_the_number_of_images(saved, tmp_path):
    smaller = config(batch_size=16, lr_batch=16, bn_groups=8)
    read = sources.read(saved[0], smaller)
    with pytest.raises(ValueError, match="with batch_size=16: its 9 steps left queue_ptr=32"):
        targets.write(read, "workdir", tmp_path / "w")
    assert not any(tmp_path.iterdir())
    lines = targets.write(read, "workdir", tmp_path / "w", images=96)
    assert lines[0] == "step 18: 3 epochs of 6 steps each"
    smaller.steps = 18
    state = pretrain.pretrain(
        smaller,
        tmp_path / "w",
        devices=jax.devices()[:1],
        sources=tiny_sources(),
    )
    queue = np.roll(saved[1].queue.numpy().T, -32, axis=0)  # oldest first
    ring = np.roll(np.asarray(state.dictionary), -(18 % 8), axis=0)
    np.testing.assert_array_equal(ring.reshape(128, -1), queue)


@pytest.mark.slow
def test_the_resumed_run_takes_a_step(run, capsys):
    state = pretrain.pretrain(config(), run[0], devices=jax.devices()[:1], sources=tiny_sources())
    assert int(state.step) == 10
    assert "resumed at step 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue_size": 256}, "has 128 keys of 16 numbers, but --config has queue_size=256"),
        ({"model__head": "linear"}, "model.head: 'mlp' in the weights, 'linear' in the config"),
        ({"model__width": 2.0}, "model.width: 1.0 in the weights, 2.0 in the config"),
        ({"dictionary": "in_batch"}, "needs dictionary='queue' in --config for.*, got 'in_b"),
        ({"bn_groups": 5}, "must be a multiple of bn_groups=5"),
    ],
)
def test_another_config_is_refused(saved, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        targets.write(sources.read(saved[0], config(**changes)), "workdir", tmp_path / "w")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("module.queue", "lacks queue, queue_ptr, which --to=workdir needs"),
        ("module.encoder_k.", "lacks encoder_k.conv1.weight, which --to=workdir needs"),
        ("optimizer", "lacks the optimizer"),
        ("epoch", "contains no epoch"),
    ],
)
def test_error_names_the_missing_part(saved, tmp_path, drop, message):
    content = {k: x for k, x in saved[2].items() if k != drop}
    content["state_dict"] = {
        k: x for k, x in content["state_dict"].items() if not k.startswith(drop)
    }
    library("torch").save(content, tmp_path / "v.pth.tar")
    read = sources.read(tmp_path / "v.pth.tar", config())
    with pytest.raises(ValueError, match=message):
        targets.write(read, "workdir", tmp_path / "w")


def test_recipe_differences_are_printed(saved, tmp_path):
    read = sources.read(saved[0], config(weight_decay=5e-4))
    lines = targets.write(read, "workdir", tmp_path / "w")
    assert any(
        "trained with weight_decay=0.0001, but --config has weight_decay=0.0005" in x for x in lines
    )


def test_error_names_the_wrong_kind_of_checkpoint(saved, tmp_path):
    torch = library("torch")
    path = tmp_path / "v.pth.tar"
    network = reference.encoder("linear")
    state = {f"module.{name}": x for name, x in network.state_dict().items()}

    def read(content, **options):
        torch.save(content, path)
        return sources.read(path, **options)

    linear = torch.optim.SGD(network.fc.parameters(), 30.0).state_dict()
    content = {"epoch": 100, "arch": "resnet10", "state_dict": state, "best_acc1": 67.5}
    with pytest.raises(ValueError, match="a checkpoint of linear classification"):
        read(content | {"optimizer": linear})
    supervised = torch.optim.SGD(network.parameters(), 0.1).state_dict()
    found = read(content | {"optimizer": supervised})
    assert found.left_out == ["the classifier of 16 classes"]
    with pytest.raises(
        ValueError, match="needs a pretraining checkpoint of MoCo v1, v2, v3 or MAE"
    ):
        targets.write(found, "workdir", tmp_path / "w")
    with pytest.raises(ValueError, match="contains no state dict but a dict with epoch"):
        read({"epoch": 1})
