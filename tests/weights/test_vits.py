"""ViTs of other projects are recognised. A test for each fact that a file does not contain."""

import json
import math
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from moco_jax.weights import files, network, sources
from tests.tiny import tiny_config
from tests.weights.networks import assert_same

PATCH, DEPTH, SIDE = 4, 2, 2


def table(dim: int, *, swapped: bool = False) -> np.ndarray:
    """Returns MoCo v3's fixed positions: the first half of a vector depends on the row."""
    result = np.zeros((1, 1 + SIDE**2, dim), np.float32)
    for patch in range(SIDE**2):
        place = divmod(patch, SIDE)
        for axis in (0, 1):
            for i in range(dim // 4):
                angle = place[1 - axis if swapped else axis] / 10_000 ** (i / (dim // 4))
                result[0, 1 + patch, axis * dim // 2 + i] = math.sin(angle)
                result[0, 1 + patch, axis * dim // 2 + dim // 4 + i] = math.cos(angle)
    return result


def timm(dim: int = 64, *, positions: Any = "random") -> dict[str, np.ndarray]:
    """Returns random arrays under timm's names; `positions` may be an array, or None for none."""
    rng = np.random.default_rng(0)
    shapes = {"cls_token": (1, 1, dim), "patch_embed.proj.weight": (dim, 3, PATCH, PATCH)}
    shapes |= {"patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,)}
    for block in range(DEPTH):
        for layer, (outputs, inputs) in {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }.items():
            shapes[f"blocks.{block}.{layer}.weight"] = (outputs, inputs)
            shapes[f"blocks.{block}.{layer}.bias"] = (outputs,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{leaf}": (dim,) for leaf in ("weight", "bias")}
    if isinstance(positions, str):
        shapes["pos_embed"] = (1, 1 + SIDE**2, dim)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if isinstance(positions, np.ndarray):
        arrays["pos_embed"] = positions
    return arrays


def huggingface(arrays: dict, version: int) -> dict[str, np.ndarray]:
    """Returns timm's arrays under the names of a version of transformers."""
    names = {
        4: {
            "block": "encoder.layer",
            "attn.qkv": [f"attention.attention.{p}" for p in ("query", "key", "value")],
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        5: {
            "block": "layers",
            "attn.qkv": [f"attention.{p}_proj" for p in "qkv"],
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    }[version] | {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    others = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    found = {}
    for name, array in arrays.items():
        if name in others:
            found[others[name]] = array
            continue
        _, block, *layer, leaf = name.split(".")
        theirs = names[".".join(layer)]
        parts = [array] if isinstance(theirs, str) else np.split(array, 3)
        for part, own in zip([theirs] if isinstance(theirs, str) else theirs, parts, strict=True):
            found[f"{names['block']}.{block}.{part}.{leaf}"] = np.ascontiguousarray(own)
    return found


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads content as if it were in a torch file, so that no torch is needed."""

    def read(content, config=None, **options):
        path = tmp_path / "file.pth"
        path.write_bytes(b"PK")
        monkeypatch.setattr(files, "read", lambda _: content)
        return sources.read(path, config, **options)

    return read


def config_json(folder, **values):
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"} | values))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.encoder_q.", "trunk."])
@pytest.mark.parametrize("container", ["", "state_dict", "model"])
def test_any_prefix_in_any_container(read, prefix, container):
    arrays = {prefix + name: array for name, array in timm().items()}
    found = read({container: arrays} if container else arrays)
    assert_same(found.pretrained.variables, read(timm()).pretrained.variables)
    assert found.left_out == []
    backbone = found.pretrained.variables["params"]["backbone"]
    np.testing.assert_array_equal(backbone["positions"], timm()["pos_embed"])
    kernel = backbone["block2"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel, timm()["blocks.1.attn.qkv.weight"].T)
    weight = timm()["patch_embed.proj.weight"]
    np.testing.assert_array_equal(backbone["patch_embed"]["kernel"], weight.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("prefix", ["", "vit.", "model.vit."])
def test_hugging_face_names(read, tmp_path, version, prefix):
    config_json(tmp_path, num_attention_heads=4, layer_norm_eps=1e-6)
    arrays = huggingface(timm(), version)
    found = read({prefix + name: array for name, array in arrays.items()})
    assert_same(found.pretrained.variables, read(timm()).pretrained.variables)
    assert found.pretrained.config.model.heads == 4


def test_the_network_is_recognised_and_described(read):
    found = read(timm()).pretrained
    model = found.config.model
    assert (model.name, model.width, model.patch, model.depth) == ("vit_small", 64 / 384, 4, 2)
    assert (found.config.data.image_size, found.config.data.eval_resize) == (8, 8)
    assert network.describe(found.config, found.variables) == (
        "vit_small, width 0.166667, patch 4, 2 blocks, 1 heads, learned positions (8 pixels), "
        "0.10 M parameters; no head"
    )


@pytest.mark.parametrize(
    ("dim", "positions", "prefix", "heads"),
    [
        (384, "random", "", 6),  # timm, DeiT
        (384, None, "", 6),
        (384, "fixed", "", 12),  # only MoCo v3 has these positions
        (384, None, "module.base_encoder.", 12),
        (384, "random", "module.momentum_encoder.", 12),
        (192, "random", "", 3),
        (192, "fixed", "", 3),
        (64, "fixed", "module.base_encoder.", 1),
        (1280, "random", "", 16),
    ],
)
def test_heads_are_the_usual_ones_and_told(read, dim, positions, prefix, heads):
    value = table(dim) if positions == "fixed" else positions
    arrays = {prefix + name: array for name, array in timm(dim, positions=value).items()}
    found = read(arrays)
    assert found.pretrained.encoder.backbone.heads == heads
    told = [note for note in found.notes if note.startswith("heads")]
    assert len(told) == 1 and told[0].startswith(f"heads {heads}: ") and "--heads=" in told[0]


def test_heads_are_set(read, tmp_path):
    found = read(timm(384), heads=8)
    assert found.pretrained.config.model.heads == 8
    assert not any(note.startswith("heads") for note in found.notes)
    with pytest.raises(ValueError, match="7 attention heads do not divide tokens of 384 values"):
        read(timm(384), heads=7)
    with pytest.raises(
        ValueError,
        match="tokens of 32 values have no usual one; .*--config.model.heads=.* --heads=",
    ):
        read(timm(32))
    config_json(tmp_path, num_attention_heads=4)
    with pytest.raises(ValueError, match="config.json has 4 attention heads, but 8 are given"):
        read(huggingface(timm(), 4), heads=8)


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        (lambda: table(64), "sincos"),
        (lambda: table(64) + np.float32(5e-6), "sincos"),
        (lambda: table(64) + np.float32(1e-4), "learned"),
        (lambda: table(64, swapped=True), "sincos_mae"),
        (lambda: table(64, swapped=True) - np.float32(5e-6), "sincos_mae"),
        (lambda: table(64, swapped=True) - np.float32(1e-4), "learned"),
        (lambda: None, "sincos"),
    ],
)
def test_fixed_positions_are_computed_and_others_kept(read, make, positions):
    value = make()
    found = read(timm(positions=value), heads=4)
    assert found.pretrained.config.model.positions == positions
    backbone = found.pretrained.variables["params"]["backbone"]
    assert ("positions" in backbone) == (positions == "learned")
    if positions == "learned":
        np.testing.assert_array_equal(backbone["positions"], value)
    told = any("no positions in the file: MoCo v3's sines" in note for note in found.notes)
    assert told == (value is None)
    assert found.pretrained.config.data.image_size == (224 if value is None else 8)


def test_a_config_is_used_or_refused(read):
    def config(**changes):
        own = {"name": "vit_small", "stem": "patch", "width": 64 / 384, "patch": 4, "depth": 2}
        own |= {"heads": 4, "positions": "learned"}
        return tiny_config(**{f"model__{k}": v for k, v in own.items()} | changes)

    assert read(timm(), config()).pretrained.config.model.heads == 4
    same = config(model__name="vit_tiny", model__width=64 / 192)  # the same network
    assert read(timm(), same).pretrained.config.model.name == "vit_tiny"
    for changes, message in (
        ({"model__depth": 3}, "model.depth: 2 in the weights, 3 in the config"),
        ({"model__positions": "sincos"}, "model.positions: 'learned' in the weights, 'sincos' in"),
        (
            {"data__image_size": 16},
            "data.image_size: 8 in the weights, whose positions are",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read(timm(), config(**changes))
    with pytest.raises(ValueError, match="model.heads: 6 in the weights, 0 in the config"):
        read(timm(384), config(model__width=1.0, model__heads=0))


def test_parts_beside_the_encoder_are_left_out(read, tmp_path):
    one = np.ones((5, 64), np.float32)
    extra = {"head.weight": one, "head.bias": one[0], "pre_logits.fc.weight": one}
    extra |= {"mask_token": one, "decoder_embed.weight": one, "decoder_blocks.0.norm1.bias": one}
    found = read(timm() | extra)
    assert found.left_out == [
        *("the classifier of 5 classes", "pre_logits", "mask_token"),
        *("decoder_embed", "decoder_blocks"),
    ]
    assert_same(found.pretrained.variables, read(timm()).pretrained.variables)
    config_json(tmp_path, num_attention_heads=1)
    vit = {f"vit.{name}": x for name, x in huggingface(timm(), 5).items()}
    found = read(vit | {"classifier.weight": one, "vit.pooler.dense.weight": one})
    assert found.left_out == ["the classifier of 5 classes", "vit.pooler"]


def test_timms_norm_of_mean_features_is_mean_pooling(read):
    renamed = {f"fc_{name}" if name.startswith("norm.") else name: x for name, x in timm().items()}
    found = read(renamed).pretrained
    assert found.config.model.pool == "mean"
    assert_same(found.variables, read(timm()).pretrained.variables)
    with pytest.raises(ValueError, match="norms before and behind the pooling"):
        read(timm() | renamed)


ONE = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"dist_token": ONE}, "a distillation token, which is not supported: dist_token"),
        ({"reg_token": ONE}, "register tokens.*: reg_token"),
        ({"blocks.0.ls1.gamma": ONE}, "layer scale.*: blocks.0.ls1.gamma"),
        ({"blocks.1.gamma_1": ONE}, "layer scale"),
        ({"blocks.0.attn.q_norm.weight": ONE}, "norms of queries and keys"),
        ({"blocks.0.mlp.w12.weight": ONE}, r"a gated MLP \(SwiGLU\)"),
        ({"blocks.0.attn.relative_position_bias_table": ONE}, "relative positions"),
        ({"norm_pre.weight": ONE}, "a norm before the blocks"),
        ({"attn_pool.latent": ONE}, "attention pooling"),
        ({"blocks.0.other.weight": ONE}, "unexpected blocks.0.other.weight"),
        ({"cls_token": None}, "cls_token is absent; a ViT needs a class token"),
        ({"cls_token": np.ones((1, 1, 63), np.float32)}, "of shape .1, 1, 63.; a ViT needs"),
        ({"patch_embed.proj.weight": np.ones((64, 1, 4, 4), np.float32)}, r"\[d, 3, p, p\]"),
        ({"pos_embed": np.ones((1, 4, 64), np.float32)}, "pos_embed has shape .1, 4, 64.; allowed"),
        ({"pos_embed": np.ones((1, 6, 64), np.float32)}, "pos_embed has shape .1, 6, 64."),
        ({"blocks.1.attn.qkv.bias": None}, "missing blocks.1.attn.qkv.bias"),
        ({"blocks.0.norm1.bias": np.ones(63, np.float32)}, "blocks.0.norm1.bias has shape"),
        ({"pos_embed": np.full((1, 5, 64), np.nan, np.float32)}, "NaN or infinity: pos_embed"),
    ],
)
def test_what_a_vit_can_not_have_is_named(tmp_path, extra, message):
    arrays = {name: x for name, x in (timm() | extra).items() if x is not None}
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors.*{message}"):
        sources.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "deit"}, "model_type='deit' .allowed: 'vit' or 'vit_mae'"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' .allowed: 'gelu'"),
        ({"num_attention_heads": "4"}, "num_attention_heads='4' .allowed: whole numbers"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001 .allowed: 0 to 1e-5"),
        (None, "need their config.json"),
    ],
)
def test_config_json_must_fit(read, tmp_path, values, message):
    if values is not None:
        config_json(tmp_path, **values)
    with pytest.raises(ValueError, match=message):
        read(huggingface(timm(), 4))


def test_another_epsilon_is_told(read, tmp_path):
    for given, told in ((1e-6, False), (1e-12, True), (None, True)):
        values = {} if given is None else {"layer_norm_eps": given}
        config_json(tmp_path, num_attention_heads=4, **values)
        notes = read(huggingface(timm(), 4)).notes
        assert any(note.startswith("layer_norm_eps 1e-12 in") for note in notes) == told


def test_a_part_of_queries_keys_and_values_is_missing(read, tmp_path):
    config_json(tmp_path, num_attention_heads=4)
    arrays = huggingface(timm(), 4)
    del arrays["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ValueError, match="missing encoder.layer.1.attention.attention.qkv.w"):
        read(arrays)
