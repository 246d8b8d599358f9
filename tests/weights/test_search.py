"""Encoders are found by their structure, under any prefix and in any container."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from moco_jax.encoders import pretrained
from moco_jax.weights import files, sources
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.weights.networks import assert_same, encoder

FOUND = encoder(head=False)
IMAGENET = encoder(head=False, stem="imagenet")
PLAIN = to_torch(FOUND.variables, NAMINGS["torchvision"], FOUND.config)
LAYERS = ("layer1", "layer2", "layer3", "layer4")
HEAD = {"weight": np.ones((16, 64), np.float32), "bias": np.ones(16, np.float32)}


def under(prefix: str, arrays=PLAIN) -> dict:
    return {prefix + name: array for name, array in arrays.items()}


def changed(arrays=PLAIN) -> dict:
    """Returns another encoder: a momentum encoder is not equal to the trained one."""
    return {name: np.asarray(array + array.dtype.type(1)) for name, array in arrays.items()}


def renamed(modules: dict, arrays=PLAIN) -> dict:
    parts = ((name.partition("."), array) for name, array in arrays.items())
    return {f"{modules[first]}.{rest}": array for (first, _, rest), array in parts}


def numbered(first_stage: int) -> dict:
    """Returns the arrays as a Sequential of a network's children has them."""
    stages = {layer: first_stage + i for i, layer in enumerate(LAYERS)}
    return renamed({"conv1": 0, "bn1": 1} | stages)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads content as if it were in a torch file, so that no torch is needed."""

    def read(content, prefix=None):
        path = tmp_path / "file.pth"
        path.write_bytes(b"PK")
        monkeypatch.setattr(files, "read", lambda _: content)
        return sources.read(path, prefix=prefix)

    return read


PREFIXES = [
    "module.",
    "backbone.",
    "encoder.",
    "model.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.model.",
    "encoder_q.0.",
    "model.encoder_q.",
    "trunk._feature_blocks.",
    "_feature_blocks.",
    "student.backbone.",
    "online_network.",
    "online_encoder.net.",
    "resnet.",
    "visual.trunk.",
    "teacher.module.backbone.",
    "0.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", ["", "state_dict", "model", "deep"])
def test_any_prefix_in_any_container(read, prefix, container):
    arrays = under(prefix)
    deep = {"classy_state_dict": {"base_model": {"model": arrays, "meters": {}}}, "phase": 3}
    content = {"": arrays, "deep": deep}.get(container, {container: arrays, "epoch": 3})
    found = read(content)
    assert_same(found.pretrained.variables, FOUND.variables)
    assert found.left_out == []


@pytest.mark.parametrize(
    "containers",
    [
        ("model_state_dict",),
        ("net",),
        ("network", "weights"),
        ("classy_state_dict", "base_model", "model", "trunk"),
        (0,),
        ("models", 0, "state_dict"),
    ],
)
def test_containers_as_they_come(read, containers):
    content = under("_feature_blocks.")
    for key in reversed(containers):
        content = [content] if key == 0 else {key: content}
    assert_same(read(content).pretrained.variables, FOUND.variables)


@pytest.mark.parametrize("inner", ["layer1._orig_mod.", "module.layer1.", "layer1.0._orig_mod."])
def test_wrappers_inside_the_encoder(read, inner):
    """torch.compile of a part of a network wraps that part only."""
    original = "layer1.0." if ".0." in inner else "layer1."
    arrays = {
        inner + name.removeprefix(original) if name.startswith(original) else name: array
        for name, array in PLAIN.items()
    }
    assert_same(read(arrays).pretrained.variables, FOUND.variables)


@pytest.mark.parametrize("first_stage", [2, 3, 4])
@pytest.mark.parametrize("prefix", ["", "backbone.", "state.0."])
def test_numbered_layers(read, first_stage, prefix):
    """A Sequential of the children, with or without the pooling and the ReLU."""
    found = read(under(prefix, numbered(first_stage)))
    assert_same(found.pretrained.variables, FOUND.variables)
    assert "its layers have numbers; they are read in a ResNet's order" in found.notes


def test_hugging_face_names_under_a_prefix(read, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    names = to_torch(IMAGENET.variables, NAMINGS["huggingface"], IMAGENET.config)
    assert_same(read(under("model.resnet.", names)).pretrained.variables, IMAGENET.variables)


def test_shortcut_is_another_name_of_downsample(read):
    arrays = {name.replace("downsample", "shortcut"): array for name, array in PLAIN.items()}
    assert_same(read(under("encoder.", arrays)).pretrained.variables, FOUND.variables)


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("backbone.", "momentum_backbone."),
        ("backbone.", "backbone_momentum."),
        ("encoder_q.0.", "encoder_k.0."),
        ("student.", "teacher."),
        ("student.backbone.", "teacher.backbone."),
        ("online_network.", "target_network."),
        ("online_encoder.net.", "target_encoder.net."),
        ("model.", "model_ema."),
        ("state_dict.", "state_dict_ema."),
        ("model.", "emaModel."),
        ("net.", "shadow."),
        ("query_encoder.", "key_encoder."),
        ("", "momentum_encoder."),
        ("student.", "backbone."),
    ],
)
def test_the_trained_encoder_comes_before_its_average(read, query, key):
    for arrays in (
        under(query) | under(key, changed()),
        under(key, changed()) | under(query),
    ):
        found = read({"state_dict": arrays})
        assert_same(found.pretrained.variables, FOUND.variables)
        assert any(f"'state_dict.{key}'" in note for note in found.notes)
        if query:
            assert f"prefix 'state_dict.{query}'" in found.notes
    other = read({"state_dict": arrays}, prefix=key.rstrip(".")).pretrained
    assert not np.array_equal(
        other.variables["params"]["backbone"]["stem_conv"]["kernel"],
        FOUND.variables["params"]["backbone"]["stem_conv"]["kernel"],
    )
    assert key in other.source


def test_a_choice_that_no_rule_makes_is_an_error(read):
    arrays = under("left.") | under("right.", changed())
    with pytest.raises(
        ValueError,
        match=r"several encoders, and their names do not choose one: 'left\.', 'right\.'; "
        "convert one with python -m moco_jax.convert --prefix=left",
    ):
        read(arrays)
    assert_same(read(arrays, prefix="left").pretrained.variables, FOUND.variables)
    assert_same(read(arrays, prefix="left.").pretrained.variables, FOUND.variables)
    with pytest.raises(ValueError, match=r"--prefix=middle. is not an encoder of .*'left\.', 'ri"):
        read(arrays, prefix="middle")
    lists = {"states": [PLAIN, changed()]}
    with pytest.raises(ValueError, match=r"'states\.0\.', 'states\.1\.'"):
        read(lists)
    assert_same(read(lists, prefix="states.0").pretrained.variables, FOUND.variables)
    twice = {"a": {"net": PLAIN}, "b": {"net": changed()}}
    with pytest.raises(ValueError, match=r"--prefix=net. names several encoders of "):
        read(twice, prefix="net")


def test_equal_encoders_need_no_choice(read):
    found = read(under("left.") | under("right.", dict(PLAIN)))
    assert found.notes == (
        "prefix 'left.'",
        "other encoders, which convert --prefix=... reads: 'right.'",
    )


def test_an_encoder_of_other_images_is_not_chosen(read):
    depth = changed() | {"conv1.weight": np.ones((8, 1, 3, 3), np.float32)}
    found = read(under("depth.", depth) | under("colour."))
    assert found.notes[0] == "prefix 'colour.'"


def test_heads_are_named_as_left_out(read):
    heads = {
        "projector.0.weight": HEAD["weight"],
        "momentum_projector.0.weight": HEAD["weight"],
        "backbone.fc.weight": HEAD["weight"],
        "backbone.fc.bias": HEAD["bias"],
        "queue": HEAD["weight"],
    }
    found = read({"state_dict": under("backbone.") | heads, "optimizer": {"m": HEAD["bias"]}})
    assert found.left_out == [
        "the classifier of 16 classes",
        "state_dict.projector",
        "state_dict.momentum_projector",
        "state_dict.queue",
        "optimizer",
    ]


@pytest.mark.parametrize(
    "extra",
    ["conv2.weight", "attnpool.weight", "layer5.0.conv1.weight", "layer1.0.se.weight", "bn2.bias"],
)
def test_arrays_that_change_the_encoder_are_refused(read, extra):
    with pytest.raises(ValueError, match=f"prefix 'visual.' does not match .*: unexpected {extra}"):
        read(under("visual.", PLAIN | {extra: HEAD["weight"]}))


def test_the_cifar_10_demo(read):
    """Its layers are numbered, without the pooling, and its head is a linear layer at the end."""
    layers = numbered(3) | {f"9.{leaf}": array for leaf, array in HEAD.items()}
    arrays = under("encoder_q.net.", layers) | under("encoder_k.net.", changed(layers))
    queue = np.ones((16, 64), np.float32)
    arrays |= {"queue": queue, "queue_ptr": np.zeros(1, np.int64)}
    found = read({"epoch": 7, "state_dict": arrays, "optimizer": {}})
    assert found.title == "a pretraining checkpoint of MoCo v1 or v2, epoch 7"
    assert found.left_out == ["the key encoder", "the queue"]
    assert found.pretrained.config.model.head == "linear"
    kept = found.pretrained.variables["params"]
    np.testing.assert_array_equal(kept["head"]["output"]["kernel"], HEAD["weight"].T)
    assert_same({"backbone": kept["backbone"]}, FOUND.variables["params"])
    checkpoint = found.checkpoint
    assert checkpoint is not None
    assert set(checkpoint.arrays) == {
        *under("encoder_q.", PLAIN | {f"fc.{leaf}": 0 for leaf in HEAD}),
        *under("encoder_k.", PLAIN | {f"fc.{leaf}": 0 for leaf in HEAD}),
        "queue",
        "queue_ptr",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone.fpn.inner.0.weight", "a detection model"),
    ],
)
def test_known_projects_stay_refused_beside_an_encoder(read, name, message):
    with pytest.raises(ValueError, match=f"is {message}, which is not supported"):
        read({"model": under("x.") | {name: np.ones((8, 3, 3, 3), np.float32)}})


def test_containers_that_contain_themselves(read):
    content = {"state_dict": dict(PLAIN)}
    content["self"] = content
    content["list"] = [content, content]
    assert_same(read(content).pretrained.variables, FOUND.variables)


def test_own_files_have_one_encoder(tmp_path):
    pretrained.write(tmp_path / "a.safetensors", FOUND)
    with pytest.raises(ValueError, match="one encoder; --prefix is for weights of other projects"):
        sources.read(tmp_path / "a.safetensors", prefix="backbone")


def test_a_safetensors_file_with_a_prefix(tmp_path):
    save_file(under("model.backbone."), tmp_path / "a.safetensors")
    assert_same(sources.read(tmp_path / "a.safetensors").pretrained.variables, FOUND.variables)
