"""`config.init`: a run starts from existing weights, which it names, or refuses them."""

import json
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moco_jax import config as config_lib
from moco_jax import main
from moco_jax.data.augment import recipes
from moco_jax.data.sources.source import Sources, array_source
from moco_jax.encoders import pretrained
from moco_jax.parallel import mesh
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import initial, pretrain
from moco_jax.pretraining.run import build
from moco_jax.training.integrity import checkpoint_files
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.encoder_files import write_encoder
from tests.in_process import exit_code
from tests.tiny import tiny_config
from tests.weights.networks import library, randomise


def images(size: int = 8) -> Sources:
    """Returns labelled noise with a faint tint, so that kNN is neither right nor wrong always."""
    rng = np.random.default_rng(0)

    def make(n):
        labels = rng.integers(0, 4, n)
        tint = 25 * np.eye(4, 3)[labels][:, None, None]
        pixels = 128 + tint + rng.normal(0, 60, (n, size, size, 3))
        return array_source(np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Sources(make(96), make(64))


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(got, want) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def started(config, folder, sources=None):
    """Returns the state at step 0 as a run creates it, and the run."""
    config, start = initial.read(config, folder, jax.device_count())
    run = build(config, make_layout(**config.mesh), sources or images())
    run = initial.begun(run, start) if start else run
    return run.create(), run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of 3 steps: its folder, as a whole and in two formats, and its last kNN top-1."""
    folder = tmp_path_factory.mktemp("source")
    pretrain.pretrain(tiny_config(steps=3), folder / "run", sources=images())
    found = pretrained.read(folder / "run")
    pretrained.write(folder / "ours.safetensors", found)
    arrays = to_torch(found.variables, NAMINGS["torchvision"], found.config)
    arrays = {name: x for name, x in arrays.items() if not name.startswith("fc")}
    arrays["fc.weight"] = np.ones((10, 64), np.float32)
    save_file(arrays, folder / "torchvision.safetensors")
    return folder, found, lines(folder / "run")[-1]["knn_top1"]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("run", "the head, the key encoder, the queue and the optimizer state of its run"),
        ("ours.safetensors", "the head"),
        ("torchvision.safetensors", "the classifier of 10 classes"),
    ],
)
def test_knn_at_step_0_is_that_of_the_source(source, tmp_path, capsys, name, printed):
    folder, found, knn = source
    config = tiny_config(init=str(folder / name), seed=1, steps=1, model__dim=8)
    pretrain.pretrain(config, tmp_path, sources=images())
    first = lines(tmp_path)[0]
    assert first["step"] == 0 and first["knn_top1"] == knn and 0 < knn < 100
    out = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(out) if line.startswith("--config.init: "))
    size = sum(x.size for x in jax.tree.leaves(found.variables["params"]["backbone"]))
    count = len(jax.tree.leaves(found.variables["params"]["backbone"]))
    assert out[begin + 1 : begin + 4] == [
        f"  loaded: the backbone, {count} arrays of {size / 1e6:.2f} M parameters, and its batch "
        "statistics",
        "  random: head; new: queue, optimizer state",
        f"  not used: {printed}",
    ]
    assert f"kNN top-1 {knn:.2f}% as loaded" in "\n".join(out)
    about = checkpoint_files.read_about(tmp_path / "checkpoints" / "1")
    assert about["recipe"]["init"] == str(folder / name)
    assert name in about["contents"]["init"]["description"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mesh__fsdp": 2},
        {"dictionary": "in_batch", "key_encoder": "trained"},
        {"dictionary": "in_batch", "key_encoder": "shared"},
        {"dictionary": "memory_bank", "key_encoder": "none", "views": (recipes.cifar(),)},
    ],
)
def test_both_encoders_have_the_backbone_and_the_rest_is_that_of_a_random_start(
    source, tmp_path, monkeypatch, changes
):
    monkeypatch.setattr(mesh, "_SMALL", 1)  # every array is split
    folder, found, _ = source
    config = tiny_config(seed=1, bank__negatives=16, **changes)
    random, _ = started(config, tmp_path)
    config.init = str(folder / "run")
    state, _ = started(config, tmp_path)
    assert jax.tree.structure(state) == jax.tree.structure(random)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(random), strict=True):
        assert (x.sharding, x.dtype, x.shape) == (y.sharding, y.dtype, y.shape)
    keys = (state.key_params, state.key_batch_stats)
    for tree, kind in zip(
        (state.params, state.batch_stats, *keys), ("params", "batch_stats") * 2, strict=True
    ):
        if tree or tree is state.params:
            equal(tree["backbone"], found.variables[kind]["backbone"])
    assert bool(keys[0]) == (config.key_encoder in ("momentum", "trained"))
    equal(state.params["head"], random.params["head"])
    equal((state.step, state.opt_state, state.dictionary), (0, random.opt_state, random.dictionary))


def test_a_resume_needs_no_file_and_names_another_one(source, tmp_path, caplog):
    folder, _, _ = source
    shutil.copy(folder / "ours.safetensors", tmp_path / "a.safetensors")
    init = str(tmp_path / "a.safetensors")
    config = tiny_config(init=init, steps=2, seed=1, model__dim=8, knn__every_epochs=0.0)
    pretrain.pretrain(config, tmp_path / "run", sources=images())
    begun = checkpoint_files.read_about(tmp_path / "run" / "checkpoints" / "2")["contents"]["init"]
    (tmp_path / "a.safetensors").unlink()
    config.steps = 4
    pretrain.pretrain(config, tmp_path / "run", sources=images())
    config.init, config.steps = "", 5
    pretrain.pretrain(config, tmp_path / "run", sources=images())
    assert not any("init" in message for message in caplog.messages)
    config.init, config.steps = "other", 6
    pretrain.pretrain(config, tmp_path / "run", sources=images())
    assert [message for message in caplog.messages if "init" in message] == [
        "init='other' has no effect: the run goes on from its checkpoint; another --workdir "
        "starts from these weights"
    ]
    assert config.init == "other"  # not changed
    about = checkpoint_files.read_about(tmp_path / "run" / "checkpoints" / "6")
    assert about["recipe"]["init"] == init
    assert about["contents"]["init"] == begun and about["contents"].keys() == {"images", "init"}


def test_a_run_that_began_untrained_stays_one(tmp_path, capsys):
    pretrain.pretrain(tiny_config(steps=1), tmp_path, sources=images())
    pretrain.pretrain(tiny_config(steps=2, init="other"), tmp_path, sources=images())
    out = capsys.readouterr().out
    assert out.count("(untrained ") == 2 and "as loaded" not in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__width": 0.25},
            r"model.width: 0.125 in the file, 0.25 in the config\n"
            r"  params/stage1_block1/Conv_0/kernel: \(3, 3, 8, 8\) in the file, "
            r"\(3, 3, 16, 16\) in the config\n(.*\n){2}  and \d+ more arrays\n"
            r"The config fits it with --config.model.width=0.125$",
        ),
        ({"model__stem": "imagenet"}, r"\nThe config fits it with --config.model.stem=small$"),
        (
            {"model__name": "resnet18"},
            r"params/stage1_block2/Conv_0/kernel: absent in the file, \(3, 3, 8, 8\) in the config"
            r"\n(.*\n)+The config fits it with --config.model.name=resnet10$",
        ),
        (
            {"model__name": "resnet50", "model__width": 1.0},
            "fits it with --config.model.name=resnet10 --config.model.width=0.125$",
        ),
    ],
)
@pytest.mark.parametrize("name", ["run", "torchvision.safetensors"])
def test_another_backbone_is_refused_with_the_keys_that_fit(
    source, tmp_path, name, changes, message
):
    path = source[0] / name
    # The images are absent, but are not looked for yet.
    config = tiny_config(init=str(path), data__source="images", data__path="/none", **changes)
    with pytest.raises(ValueError, match=message) as error:
        pretrain.pretrain(config, tmp_path / "new")
    assert str(error.value).startswith(f"--config.init={path} has another backbone than the config")
    assert not (tmp_path / "new").exists()


def _other_kind(folder, path) -> None:
    """Makes the checkpoint of a run the one of a linear classifier."""
    shutil.copytree(folder / "run", path)
    (file,) = path.glob("checkpoints/*/about/metadata")
    about = json.loads(file.read_text()) | {"kind": "moco_jax.linear"}
    file.write_text(json.dumps(checkpoint_files.sealed(about)))


def _not_finite(folder, path) -> None:
    arrays = load_file(folder / "torchvision.safetensors")
    arrays["layer1.0.bn1.weight"][0] = np.nan
    save_file(arrays, path)


WRONG = {
    "absent": (lambda folder, path: None, "absent does not exist; allowed: a file, a workdir"),
    "empty": (lambda folder, path: path.mkdir(), "holds no checkpoint; allowed: a workdir"),
    "linear": (_other_kind, "is a checkpoint of kind 'moco_jax.linear', not 'moco_jax.pretrain'"),
    "cut.safetensors": (
        lambda folder, path: path.write_bytes((folder / "ours.safetensors").read_bytes()[:5000]),
        "is a damaged safetensors file",
    ),
    "text.pth": (lambda folder, path: path.write_text("text"), "is neither a safetensors file nor"),
    "vit.safetensors": (
        lambda folder, path: save_file({"cls_token": np.ones((1, 1, 4), np.float32)}, path),
        "vision transformer|vit_",
    ),
    "nan.safetensors": (_not_finite, "NaN or infinity: layer1.0.bn1.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_can_not_be_used_are_one_error_that_names_the_key(source, tmp_path, name):
    make, message = WRONG[name]
    make(source[0], tmp_path / name)
    config = tiny_config(init=str(tmp_path / name))
    with pytest.raises(ValueError, match=message) as error:
        pretrain.pretrain(config, tmp_path / "new", sources=images())
    assert str(error.value).startswith(f"--config.init={tmp_path / name} can't be used: ")


def test_the_command_ends_with_the_code_of_a_wrong_config(repository, tmp_path, capsys):
    code = exit_code(
        main.run,
        f"--config={repository}/configs/digits.py",
        f"--config.init={tmp_path}/none",
        f"--workdir={tmp_path}/run",
    )
    printed = capsys.readouterr().err
    assert code == 2 and f"error: --config.init={tmp_path}/none can't be used: " in printed
    assert "Traceback" not in printed and not (tmp_path / "run").exists()


def test_a_stem_that_is_left_to_the_images_is_that_of_the_weights(repository, tmp_path, capsys):
    config = tiny_config(data__image_size=32, data__eval_resize=32)
    config.model.stem = "imagenet"
    write_encoder(tmp_path / "a.safetensors", config)
    config.init = str(tmp_path / "a.safetensors")
    config_lib.leave_to_data(config, ("model.stem",))  # images of 32 pixels have the small one
    read, start = initial.read(config, tmp_path, jax.device_count())
    assert read.model.stem == "imagenet" and config.model.stem is None and start is not None
    assert "model.stem imagenet: that of --config.init" in start.notes


@pytest.mark.parametrize("name", ["run", "torchvision.safetensors"])
def test_other_statistics_of_pixels_are_a_warning(source, tmp_path, name):
    config = tiny_config(init=str(source[0] / name), data__mean=(0.5, 0.5, 0.5))
    _, start = initial.read(config, tmp_path, jax.device_count())
    assert start is not None
    about = "--config.init was trained with another mean or std of pixels"
    if name != "run":
        about = (
            "the file of --config.init does not contain the mean and std of its training; if they "
            "were ImageNet's, give"
        )
    assert start.notes[-1] == f"warning: {about}:\n  --config.data.mean=0.485,0.456,0.406"
    _, start = initial.read(tiny_config(init=config.init), tmp_path, jax.device_count())
    assert start is not None and "warning" not in "".join(start.notes)


def independent_knn(queries, query_labels, bank, bank_labels, k: int, temperature: float) -> float:
    """Returns top-1 in percent of neighbours that vote with exp(cosine / temperature)."""
    queries, bank = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank))
    right = 0
    for query, label in zip(queries, query_labels, strict=True):
        cosines = bank @ query
        nearest = np.argsort(-cosines)[:k]
        votes = np.zeros(4)
        np.add.at(votes, bank_labels[nearest], np.exp(cosines[nearest] / temperature))
        right += votes.argmax() == label
    return 100 * right / len(queries)


@pytest.mark.parametrize("name", ["torchvision.pth", "timm.safetensors"])
def test_knn_of_a_file_of_torch_is_that_of_torch(tmp_path, name):
    torch, path = library("torch"), tmp_path / name
    if name == "timm.safetensors":
        model = randomise(library("timm").create_model("resnet18"))
        save_file({key: x.numpy() for key, x in model.state_dict().items()}, path)
    else:
        model = randomise(library("torchvision").models.resnet18())
        torch.save(model.state_dict(), path)
    size = 16
    config = tiny_config(
        init=str(path),
        model__name="resnet18",
        model__stem="imagenet",
        model__width=1.0,
        data__image_size=size,
        data__eval_resize=size,
    )
    sources = images(size)
    state, run = started(config, tmp_path / "run", sources)
    model.fc = torch.nn.Identity()

    def features(source):
        pixels = np.stack([source.read(i) for i in range(len(source))]) / 255
        x = (pixels - np.array(config.data.mean)) / np.array(config.data.std)
        with torch.no_grad():
            return model(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))).numpy()

    assert sources.test is not None
    bank, queries = ((features(x), x.labels) for x in (sources.train, sources.test))
    want = independent_knn(*queries, *bank, config.knn.k, config.knn.temperature)
    assert run.monitor is not None
    got = run.monitor.top1(run.monitor.encoded(state.params, state.batch_stats))
    assert got == pytest.approx(want, abs=100 / 64 + 1e-9)  # rounding may move one image
    want_stem = model.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    flat = flax.traverse_util.flatten_dict(jax.device_get(state.params["backbone"]))
    np.testing.assert_array_equal(flat["stem_conv", "kernel"], want_stem)


def test_a_damaged_record_of_the_start_is_none():
    assert initial._continued(tiny_config(), {"init": {}}).init == ""


def test_a_vit_whose_batch_norm_is_only_in_the_heads_is_a_start(tmp_path):
    vit = {"name": "vit_tiny", "stem": "patch", "patch": 4, "depth": 1, "width": 0.25}
    model = {f"model__{key}": value for key, value in vit.items()}
    v3 = {"model__head": "mlp_bn", "dictionary": "in_batch", "bn_groups": 1, "shuffle_bn": False}
    config = tiny_config(**model, **v3, steps=1, knn__every_epochs=0.0)
    pretrain.pretrain(config, tmp_path / "v3", sources=images())
    source = pretrained.read(tmp_path / "v3")
    assert set(source.variables["batch_stats"]) == {"head"}
    config = tiny_config(**model, init=str(tmp_path / "v3"), seed=1)
    config, start = initial.read(config, tmp_path / "new", 1)
    assert start is not None and set(start.backbone) == {"params"}
    jax.tree.map(
        np.testing.assert_array_equal,
        start.backbone["params"],
        source.variables["params"]["backbone"],
    )
    assert "not used: the head, the key encoder, the optimizer state of its run" in [
        line.strip() for line in start.notes
    ]


def test_a_masked_run_starts_and_is_a_start(tmp_path):
    """It has no dictionary, no key encoder and no head."""
    vit = {"name": "vit_tiny", "stem": "patch", "patch": 4, "depth": 1, "width": 0.25}
    model = {f"model__{key}": value for key, value in vit.items()}
    mae = {"pretext": "masked", "decoder__dim": 16, "decoder__depth": 1, "decoder__heads": 2}
    config = tiny_config(**model, **mae, steps=1, knn__every_epochs=0.0)
    pretrain.pretrain(config, tmp_path / "mae", sources=images())
    init = str(tmp_path / "mae")
    for changes, fresh, folder in (
        (mae, "decoder; new: optimizer state", "masked"),
        ({}, "head; new: queue, optimizer state", "contrastive"),
    ):
        config = tiny_config(**model, **changes, init=init, seed=1)
        _, start = initial.read(config, tmp_path / folder, 1)
        assert start is not None
        equal(start.backbone["params"], pretrained.read(init).variables["params"]["backbone"])
        notes = [line.strip() for line in start.notes]
        assert f"random: {fresh}" in notes
        assert "not used: the decoder, the optimizer state of its run" in notes
