"""Checkpoints of MAE's authors are read, written and resumed, on both sides."""

import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moco_jax.contrastive import masks
from moco_jax.contrastive.state import TrainState
from moco_jax.convert import targets
from moco_jax.convert.reference import find, read_state
from moco_jax.models.encoder import Encoder
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain
from moco_jax.pretraining.method import make_method
from moco_jax.weights import sources
from tests.convert import reference_mae as reference
from tests.convert.test_libraries import loaded
from tests.tiny import tiny_config, tiny_sources
from tests.weights.networks import assert_close, assert_same, features, library, random_images

EPOCHS, STEPS, PATCHES = 3, 9, 16


def config(**changes):
    values = {
        "steps": 10,
        "knn__every_epochs": 0.0,
        "pretext": "masked",
        "optimizer": "adamw",
        "adam_b2": 0.95,
        "decay_all": False,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "data__image_size": reference.SIZE,
        "data__eval_resize": reference.SIZE,
        "model__name": "vit_small",
        "model__stem": "patch",
        "model__width": reference.WIDTH / 384,
        "model__patch": reference.PATCH,
        "model__heads": reference.HEADS,
        "model__depth": reference.DEPTH,
        "model__positions": "sincos_mae",
        "decoder__dim": reference.DECODER_WIDTH,
        "decoder__depth": reference.DECODER_DEPTH,
        "decoder__heads": reference.DECODER_HEADS,
    }
    return tiny_config(**values | changes)


def batches(count: int = 1, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [count, B, S, S, 3] and noise [count, B, L]."""
    rng = np.random.default_rng(0)
    shape = count, reference.BATCH, reference.SIZE, reference.SIZE, 3
    noise = rng.uniform(size=(count, reference.BATCH, PATCHES))
    return rng.normal(size=shape).astype(dtype), noise.astype(dtype)


def as_torch(images: np.ndarray, noise: np.ndarray):
    torch = library("torch")
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(noise)


def masked_loss(found, images: np.ndarray, noise: np.ndarray) -> float:
    """Returns our loss for the masks of the noise."""
    order = np.argsort(noise, axis=1).astype(np.int32)
    keep = int(PATCHES * (1 - reference.RATIO))
    normalizes = bool(found.config.mask.normalize_pixels)
    loss = jax.jit(
        lambda v, x, o: found.encoder.apply(
            v, x, o, keep, normalizes=normalizes, train=False, method=Encoder.masked_loss
        )[1].mean()
    )
    return float(loss(found.variables, images, order))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a checkpoint, its model and its content."""
    torch = library("torch")
    path = tmp_path_factory.mktemp("mae") / "checkpoint-2.pth"
    model = reference.network()
    images, noise = as_torch(*(x[0] for x in batches()))
    content = reference.checkpoint(model, epochs=EPOCHS, steps=STEPS, images=images, noise=noise)
    torch.save(content, path)
    return path, model, content


@pytest.fixture(scope="module")
def run(saved):
    """A workdir made from the checkpoint, and the printed lines."""
    out = saved[0].with_name("workdir")
    return out, targets.write(sources.read(saved[0], config()), "workdir", out)


@pytest.fixture(scope="module")
def written(run):
    """The checkpoint made from that workdir, and the printed lines."""
    out = run[0].with_name("out.pth")
    return out, targets.write(sources.read(run[0]), "mae", out, images=96)


def test_features_and_loss_are_those_of_the_reference(saved):
    torch, (path, model, _) = library("torch"), saved
    read = sources.read(path, config())
    assert read.title == "a ViT of timm with the decoder of a masked autoencoder, epoch 3"
    assert read.left_out == ["optimizer"]
    images, noise = (x[0] for x in batches())
    with torch.no_grad():
        want = model.encode(as_torch(images, noise)[0])[:, 0].numpy()
        loss = model(*as_torch(images, noise)).item()
    found = read.pretrained
    assert_close(features(found, images), want)
    np.testing.assert_allclose(masked_loss(found, images, noise), loss, rtol=1e-6)


def test_a_run_resumes_with_everything_in_the_checkpoint(saved, run, capsys):
    _, model, content = saved
    folder, lines = run
    assert lines == [
        "step 9: 3 epochs of 3 steps each",
        "resume pretraining with",
        f"  python -m moco_jax.main --config=... --workdir={folder}",
    ]
    given = config(steps=9)
    state = pretrain.pretrain(given, folder, devices=jax.devices()[:1], sources=tiny_sources())
    assert "already at step 9" in capsys.readouterr().out
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    assert {int(count) for _, count in counts} == {9}
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    order = [n for n, p in trained if p.ndim == 1] + [n for n, p in trained if p.ndim > 1]
    for theirs, (part, *path) in {
        "mask_token": ("decoder", "mask_token"),
        "decoder_pred.weight": ("decoder", "pixels", "kernel"),
        "decoder_blocks.0.norm1.weight": ("decoder", "block1", "norm1", "scale"),
        "blocks.1.mlp.fc1.bias": ("backbone", "block2", "fc1", "bias"),
    }.items():
        values = (
            model.state_dict()[theirs],
            *(
                content["optimizer"]["state"][order.index(theirs)][k]
                for k in ("exp_avg", "exp_avg_sq")
            ),
        )
        moments = (optax.tree.get(state.opt_state, kind) for kind in ("mu", "nu"))
        for tree, value in zip((state.params, *moments), values, strict=True):
            found = tree[part]
            for name in path:
                found = found[name]
            array = value.detach().numpy()
            np.testing.assert_array_equal(found, array.T if array.ndim == 2 else array)


def test_a_checkpoint_survives_both_ways(saved, written):
    torch = library("torch")
    content, (path, lines) = saved[2], written
    assert lines[0] == "step 9: 3 epochs of 3 steps each"
    assert lines[-1].startswith(
        f"  python main_pretrain.py --model mae_vit_base_patch16 --resume {path} --batch_size 32 "
        "--input_size 16 --mask_ratio 0.75 --norm_pix_loss --blr 0.008 --weight_decay 0.05 "
    )
    back = torch.load(path, weights_only=True)
    assert back["epoch"] == content["epoch"] and back["scaler"] == content["scaler"]
    assert list(back["model"]) == list(content["model"])
    for name, array in content["model"].items():
        if name.endswith("pos_embed"):  # computed by both
            torch.testing.assert_close(back["model"][name], array, rtol=0, atol=1e-6)
        else:
            assert torch.equal(back["model"][name], array), name
    given, got = content["optimizer"], back["optimizer"]
    for one, other in zip(got["param_groups"], given["param_groups"], strict=True):
        for key in ("params", "weight_decay", "betas", "eps", "lr"):
            assert one[key] == other[key], key
    assert got["state"].keys() == given["state"].keys()
    for number, state in given["state"].items():
        assert got["state"][number].keys() == state.keys()
        for kind, array in state.items():
            assert torch.equal(got["state"][number][kind], array), (number, kind)


def test_both_programs_take_the_same_steps(run, written, monkeypatch):
    """Three steps in float64."""
    torch, model = library("torch"), reference.network()
    optimizer, epoch = reference.resume(written[0], model, double=True)
    assert epoch == EPOCHS
    for name, width in (("pos_embed", reference.WIDTH), ("decoder_pos_embed", 16)):
        getattr(model, name).data.copy_(reference.table(4, width))  # ours are computed in float64
    images, noise = batches(3, np.float64)
    pairs = [as_torch(*pair) for pair in zip(images, noise, strict=True)]
    want = [reference.train(model, optimizer, *pair) for pair in pairs]
    monkeypatch.setattr(
        masks,
        "draw",
        lambda config, rows, columns, batch, view: jnp.asarray(noise)[batch.step - STEPS].reshape(
            -1, rows, columns
        ),
    )
    with jax.enable_x64(True):
        state, got = _steps(run[0], images)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    for ours, theirs in (
        (state.params["decoder"]["pixels"]["kernel"], model.decoder_pred.weight),
        (state.params["backbone"]["block1"]["norm1"]["scale"], model.blocks[0].norm1.weight),
    ):
        theirs = theirs.detach().to(torch.float64).numpy().T
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


def _steps(folder, images):
    """Returns our state and losses after steps with these images, from the workdir's checkpoint."""
    layout = make_layout(jax.devices()[:1])
    method = make_method(config(dtype="float64"), layout, 96)
    saved = jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else x.dtype),
        read_state(folder).state,
    )
    opt_state = method.optimizer.init(saved["params"])
    moments = {name: find(saved["opt_state"], name) for name in ("mu", "nu")}
    opt_state = optax.tree.set(opt_state, count=saved["step"], **moments)
    empty = {"batch_stats": {}, "key_params": {}, "key_batch_stats": {}, "dictionary": ()}
    state = TrainState(**empty | saved | {"opt_state": opt_state})
    state = jax.device_put(state, method.state_shardings(state))
    step = jax.jit(method.train_step(), compiler_options={"xla_backend_optimization_level": 0})
    losses = []
    for batch in images:
        views = layout.put_batch(((batch,), np.zeros(reference.BATCH, np.int32)))
        state, metrics = step(state, *views)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def test_the_network_alone_is_written_and_loaded(saved, tmp_path, monkeypatch):
    """The printed lines load it strictly."""
    torch, (path, model, _) = library("torch"), saved
    read = sources.read(path, config())
    out = tmp_path / "a.pth"
    lines = targets.write(read, "mae", out)
    assert lines[0].endswith("has no whole train state")
    constructors = {"MaskedAutoencoderViT": reference_network}
    monkeypatch.setitem(sys.modules, "models_mae", types.SimpleNamespace(**constructors))
    images, noise = (x[0] for x in batches())
    with torch.no_grad():
        loss = model(*as_torch(images, noise)).item()
        got = loaded(lines)(*as_torch(images, noise)).item()
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    back = sources.read(out, config()).pretrained
    assert_same(back.variables, read.pretrained.variables)


def reference_network(size, patch, *, mlp_ratio, norm_layer, **options):
    assert mlp_ratio == 4 and norm_layer(8).eps == 1e-6
    return reference.network(size, patch, **options)


def test_an_encoder_without_a_decoder_is_written(saved, tmp_path):
    torch, (path, _, content) = library("torch"), saved
    encoder = sources.read(path, config(pretext="contrastive"))
    lines = targets.write(encoder, "mae", tmp_path / "a.pth")
    assert any("main_finetune.py --finetune" in line for line in lines)
    out = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    kept = [k for k in content["model"] if not k.startswith(("decoder_", "mask_token"))]
    assert list(out) == kept


@pytest.mark.parametrize(
    ("to", "left_out"),
    [
        ("moco_jax", ["optimizer"]),
        ("timm", ["optimizer", "the decoder"]),
        ("huggingface", ["optimizer", "the decoder"]),
        ("vitmae", ["optimizer"]),
        ("moco_encoder", ["optimizer", "the decoder"]),
        ("workdir", []),
    ],
)
def test_what_a_target_leaves_out_is_named(saved, tmp_path, to, left_out):
    read = sources.read(saved[0], config())
    assert targets.left_out(read, to) == left_out
    out = tmp_path / f"a{(targets.TARGETS[to].suffixes or ('',))[0]}"
    targets.write(read, to, out)
    if to == "workdir":
        return
    back = sources.read(out, None if to == "moco_jax" else config()).pretrained
    assert_same(back.backbone, read.pretrained.backbone)
    assert back.has_decoder == ("the decoder" not in left_out)


def test_errors_name_what_does_not_match(saved, tmp_path):
    torch, (path, _, content) = library("torch"), saved
    for changes, message in (
        ({"decay_all": True}, "needs decay_all=False in --config for a checkpoint of MAE, got Tr"),
        ({"optimizer": "sgd"}, "needs optimizer='adamw' in --config for a checkpoint of MAE"),
        ({"pretext": "contrastive"}, "needs a pretraining checkpoint of MoCo v1, v2, v3 or MAE"),
        ({"model__freeze_patch": True}, "model.freeze_patch=False in --config"),
        ({"decoder__dim": 8}, "decoder.dim: 16 in the weights, 8 in the config"),
        ({"lr": -1.0}, "lr=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            targets.write(sources.read(path, config(**changes)), "workdir", tmp_path / "w")
    other = torch.optim.SGD(torch.nn.ParameterList([torch.ones(1)]))
    content = {name: x for name, x in content.items() if name != "args"}
    for changes, message in (
        ({"optimizer": None}, "lacks the optimizer"),
        ({"epoch": None}, "contains no epoch"),
        ({"epoch": 3}, "the 9 steps of its optimizer are no 4 epochs of equal length"),
        ({"optimizer": other.state_dict()}, "has 1 parameters, but its encoders have 48"),
    ):
        torch.save(content | changes, tmp_path / "v.pth")
        with pytest.raises(ValueError, match=message):
            targets.write(sources.read(tmp_path / "v.pth", config()), "workdir", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_run_that_mae_can_not_continue_gives_the_network(run, tmp_path):
    read = sources.read(run[0])
    read.pretrained.config.decay_all = True
    lines = targets.write(read, "mae", tmp_path / "a.pth", images=96)
    assert lines[0] == (
        "only the network is written: MAE's code can't continue a run with decay_all=True"
    )


NAMES = pytest.mark.parametrize("names", ["4", "5"])


@NAMES
def test_hugging_faces_vitmae_is_read_and_written(names, tmp_path):
    torch, transformers = library("torch"), library("transformers")
    save = library("safetensors.torch").save_file
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {
        "intermediate_size": 256,
        "image_size": 16,
        "patch_size": 4,
        "decoder_hidden_size": 32,
    }
    sizes |= {"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    about = transformers.ViTMAEConfig(
        **sizes, decoder_intermediate_size=128, layer_norm_eps=1e-6, norm_pix_loss=True
    )
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(about).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, float("norm.weight" in name), 0.1)
    # As in published files; a new network has none in some versions of the library.
    model.vit.embeddings.position_embeddings.data = reference.table(4, 64).float()
    model.decoder.decoder_pos_embed.data = reference.table(4, 32).float()
    model.save_pretrained(tmp_path / "in")
    if names == "5":
        save(model.state_dict(), tmp_path / "in" / "model.safetensors")
    read = sources.read(tmp_path / "in")
    found = read.pretrained
    assert read.left_out == [] and read.notes == ("prefix 'vit.'",)
    assert found.config.model.positions == "sincos_mae"
    images, noise = random_images(16), batches()[1][0][:2]
    pixels, noise = as_torch(images, noise)
    whole = transformers.ViTMAEModel.from_pretrained(tmp_path / "in", mask_ratio=0.0).eval()
    with torch.no_grad():
        want = whole(pixels).last_hidden_state[:, 0].numpy()
        loss = model(pixels, noise=noise).loss.item()
    assert np.abs(features(found, images) - want).max() <= 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(masked_loss(found, images, noise.numpy()), loss, rtol=1e-6)

    written = loaded(targets.write(read, "vitmae", tmp_path / "out"))
    for key, value in sizes.items():
        assert getattr(written.config, key) == value
    assert written.config.norm_pix_loss and written.config.layer_norm_eps == 1e-6
    with torch.no_grad():
        np.testing.assert_allclose(written(pixels, noise=noise).loss.item(), loss, rtol=1e-6)
    for name, parameter in model.state_dict().items():
        tolerance = 1e-6 if "pos" in name else 0
        torch.testing.assert_close(
            written.state_dict()[name], parameter, rtol=0, atol=tolerance, msg=name
        )
    back = sources.read(tmp_path / "out").pretrained
    assert_same(back.variables, found.variables)
    assert back.config.to_dict() | {"name": ""} == found.config.to_dict() | {"name": ""}
