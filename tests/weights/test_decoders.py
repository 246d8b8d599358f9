"""The decoder of a masked autoencoder is read with its encoder, or left out with its reason."""

from typing import Any

import numpy as np
import pytest

from moco_jax.weights import files, sources
from tests.tiny import tiny_config
from tests.weights.networks import assert_same
from tests.weights.test_vits import DEPTH, PATCH, config_json, huggingface, table, timm

DIM = 32  # of the decoder's tokens
LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def decoder(features: int = 64, *, positions: bool = True) -> dict[str, np.ndarray]:
    """Returns random arrays of a decoder of one block under the names of MAE's code."""
    rng = np.random.default_rng(1)
    blocks = timm(DIM, positions=None)
    arrays = {f"decoder_{k}": x for k, x in blocks.items() if k.startswith(("blocks.0.", "norm."))}
    for name, shape in {
        "mask_token": (1, 1, DIM),
        "decoder_embed.weight": (DIM, features),
        "decoder_embed.bias": (DIM,),
        "decoder_pred.weight": (3 * PATCH**2, DIM),
        "decoder_pred.bias": (3 * PATCH**2,),
    }.items():
        arrays[name] = rng.normal(size=shape).astype(np.float32)
    return arrays | ({"decoder_pos_embed": table(DIM, swapped=True)} if positions else {})


def autoencoder(features: int = 64, **options) -> dict[str, np.ndarray]:
    encoder = timm(features, positions=table(features, swapped=True))
    return encoder | decoder(features, **options)


def of_hugging_face(arrays: dict, version: int) -> dict[str, np.ndarray]:
    """Returns the arrays of `autoencoder` under the names of a version of transformers.

    Version 0 stands for what transformers 5 writes: the names of 4, but for the decoder's blocks.
    """
    blocks_of, version = "decoder_layers" if version else "decoder_encoder.layer", version or 4
    encoder = {k: x for k, x in arrays.items() if not k.startswith(("decoder_", "mask_token"))}
    found = {f"vit.{k}": x for k, x in huggingface(encoder, version).items()}
    blocks = {k.removeprefix("decoder_"): x for k, x in arrays.items() if "decoder_blocks" in k}
    start = {4: "encoder.layer.", 5: "layers."}[version]
    for name, array in huggingface(blocks, version).items():
        found[f"decoder.{blocks_of}.{name.removeprefix(start)}"] = array
    others = ("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_norm", "decoder_pred")
    return found | {f"decoder.{k}": x for k, x in arrays.items() if k.startswith(others)}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads content as if it were in a torch file, so that no torch is needed."""

    def read(content, config=None, **options):
        path = tmp_path / "file.pth"
        path.write_bytes(b"PK")
        monkeypatch.setattr(files, "read", lambda _: content)
        return sources.read(path, config, **options)

    return read


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_masked_autoencoder_is_read(read, prefix):
    arrays = {prefix + name: x for name, x in autoencoder().items()}
    args = {"norm_pix_loss": False, "mask_ratio": 0.6, "input_size": 8}
    found = read({"model": arrays, "optimizer": {"param_groups": []}, "epoch": 3, "args": args})
    config, params = found.pretrained.config, found.pretrained.variables["params"]
    # MAE counts from 0.
    assert found.title == "a ViT of timm with the decoder of a masked autoencoder, epoch 4"
    assert found.left_out == []
    assert (config.pretext, config.model.positions) == ("masked", "sincos_mae")
    assert config.decoder.to_dict() == {"dim": DIM, "depth": 1, "heads": 16}
    assert (config.mask.fraction, config.mask.normalize_pixels) == (0.6, False)
    assert any(note.startswith("decoder heads 16: MAE's; the file") for note in found.notes)
    given, ours = autoencoder(), params["decoder"]
    np.testing.assert_array_equal(ours["mask_token"], given["mask_token"])
    for layer, name in (("embed", "embed"), ("pixels", "pred")):
        np.testing.assert_array_equal(ours[layer]["kernel"], given[f"decoder_{name}.weight"].T)
        np.testing.assert_array_equal(ours[layer]["bias"], given[f"decoder_{name}.bias"])
    np.testing.assert_array_equal(ours["norm"]["scale"], given["decoder_norm.weight"])
    block = ours["block1"]
    for layer, name in (("qkv", "attn.qkv"), ("proj", "attn.proj"), ("fc2", "mlp.fc2")):
        weight = given[f"decoder_blocks.0.{name}.weight"]
        np.testing.assert_array_equal(block[layer]["kernel"], weight.T)
    assert set(ours) == {"block1", "embed", "mask_token", "norm", "pixels"}
    encoder = read(timm(positions=table(64, swapped=True))).pretrained.variables["params"]
    assert_same(params["backbone"], encoder["backbone"])


@pytest.mark.parametrize("version", [4, 5, 0])
def test_the_names_of_hugging_face_are_read(read, tmp_path, version):
    values: dict[str, Any] = {"model_type": "vit_mae", "num_attention_heads": 4}
    values |= {"decoder_num_attention_heads": 8, "norm_pix_loss": True, "mask_ratio": 0.5}
    config_json(tmp_path, **values)
    found = read(of_hugging_face(autoencoder(), version))
    assert found.title == "a ViT of Hugging Face with the decoder of a masked autoencoder"
    assert found.left_out == []
    config = found.pretrained.config
    assert config.model.heads == 4
    assert config.decoder.to_dict() == {"dim": DIM, "depth": 1, "heads": 8}
    assert (config.mask.fraction, config.mask.normalize_pixels) == (0.5, True)
    assert_same(found.pretrained.variables, read(autoencoder(), heads=4).pretrained.variables)
    assert not any("decoder heads" in note for note in found.notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder_num_attention_heads": 0}, "decoder_num_attention_heads=0 .allowed: whole"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5 .allowed: 0 or more, and below 1"),
        ({"norm_pix_loss": "yes"}, "norm_pix_loss='yes' .allowed: true or false"),
        ({"model_type": "vit_msn"}, "model_type='vit_msn' .allowed: 'vit' or 'vit_mae'"),
    ],
)
def test_config_json_must_fit(read, tmp_path, values, message):
    config_json(tmp_path, **{"model_type": "vit_mae", "num_attention_heads": 4} | values)
    with pytest.raises(ValueError, match=message):
        read(of_hugging_face(autoencoder(), 4))


@pytest.mark.parametrize("ratio", [0, 0.0])
def test_a_file_without_masks_has_the_default_fraction(read, tmp_path, ratio):
    config_json(tmp_path, model_type="vit_mae", num_attention_heads=4, mask_ratio=ratio)
    found = read(of_hugging_face(autoencoder(), 4)).pretrained
    assert found.has_decoder
    assert found.config.mask.fraction == 0.75


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"decoder_blocks.0.cross.weight": np.ones(3)}, "unexpected decoder_blocks.0.cross.weight"),
        ({"decoder_norm.bias": None}, "missing decoder_norm.bias"),
        ({"decoder_blocks.0.attn.qkv.bias": None}, "missing decoder_blocks.0.attn.qkv.bias"),
        (
            {f"decoder_blocks.0.{n}.{x}": None for n in LAYERS for x in ("weight", "bias")},
            "it has no decoder_blocks.0.*",
        ),
        ({"mask_token": None}, "missing mask_token"),
        ({"mask_token": np.ones((1, DIM), np.float32)}, "mask_token has shape"),
        ({"decoder_pos_embed": table(DIM)}, "decoder_pos_embed has other positions than"),
        ({"decoder_pos_embed": np.ones((1, 5, DIM), np.float32)}, "decoder_pos_embed has other"),
        ({"decoder_pos_embed": np.ones((1, 9, DIM), np.float32)}, "decoder_pos_embed has other"),
        ({"decoder_pred.weight": np.ones((3, DIM), np.float32)}, "decoder_pred.weight has shape"),
        ({"decoder_embed.weight": np.ones((DIM, 9), np.float32)}, "decoder_embed.weight has shape"),
        ({"decoder_embed.weight": np.ones((30, 64), np.float32)}, "its tokens of 30 values can't"),
        ({"pos_embed": table(64)}, "decoder_pos_embed has other positions than the encoder's"),
    ],
)
def test_a_decoder_of_another_kind_is_left_out_with_its_reason(read, extra, reason):
    arrays = {name: x for name, x in (autoencoder() | extra).items() if x is not None}
    found = read(arrays)
    assert not found.pretrained.has_decoder and found.pretrained.config.pretext == "contrastive"
    [note] = [n for n in found.notes if n.startswith("the decoder is left out: ")]
    assert reason in note
    assert {"decoder_embed", "decoder_pred", "decoder_norm"} <= set(found.left_out)


@pytest.mark.parametrize("value", ["x", None, [1], {}, -1, 2.0, float("nan"), True])
def test_odd_flags_of_the_program_are_not_used(read, value):
    keys = "mask_ratio", "norm_pix_loss", "decoder_num_attention_heads", "layer_norm_eps"
    found = read({"model": autoencoder(), "args": dict.fromkeys(keys, value)}).pretrained
    assert found.config.mask.fraction == 0.75 and found.config.mask.normalize_pixels
    assert found.config.decoder.heads == 16


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        ({"mask_token": np.ones((1, 64), np.float32)}, ["mask_token"]),  # DINOv2, iBOT
        ({"mask_token": np.ones((1, 1, 64)), "decoder.0.weight": np.ones(3)}, None),  # SimMIM
        ({"decoder_embed.weight": np.ones((32, 64), np.float32)}, ["decoder_embed"]),
    ],
)
def test_a_mask_token_alone_is_no_decoder(read, extra, left_out):
    found = read(timm() | extra)
    assert found.title == "a ViT of timm" and not found.pretrained.has_decoder
    assert found.left_out == (left_out or ["mask_token", "decoder"])
    assert not any("decoder" in note for note in found.notes)


def test_the_mask_token_of_hugging_faces_vit_is_left_out(read, tmp_path):
    config_json(tmp_path, num_attention_heads=4)
    arrays = {f"vit.{k}": x for k, x in huggingface(timm(), 4).items()}
    token = {"vit.embeddings.mask_token": np.ones((1, 1, 64)), "decoder.0.weight": np.ones(3)}
    found = read(arrays | token)
    assert found.left_out == ["vit.embeddings.mask_token", "decoder"]
    assert not found.pretrained.has_decoder


def test_positions_that_the_file_lacks_are_those_of_mae(read):
    found = read(timm(positions=None) | decoder(positions=False))
    assert found.pretrained.config.model.positions == "sincos_mae" and found.pretrained.has_decoder
    assert any("no positions in the file: MAE's sines and cosines" in note for note in found.notes)


def test_a_config_is_used_or_refused(read):
    def config(**changes):
        own = {"name": "vit_small", "stem": "patch", "width": 64 / 384, "patch": 4, "depth": DEPTH}
        own |= {"heads": 4, "positions": "sincos_mae"}
        values = {"pretext": "masked", "decoder__dim": DIM, "decoder__depth": 1}
        values |= {"decoder__heads": 8} | {f"model__{k}": v for k, v in own.items()}
        return tiny_config(**values | changes)

    found = read(autoencoder(), config())
    assert found.pretrained.has_decoder and found.pretrained.config.decoder.heads == 8
    assert found.notes == ()
    given = read(autoencoder(), config(pretext="contrastive")).pretrained
    assert not given.has_decoder and given.config.pretext == "contrastive"
    for changes, message in (
        ({"decoder__dim": 64}, "decoder.dim: 32 in the weights, 64 in the config"),
        ({"decoder__depth": 3}, "decoder.depth: 1 in the weights, 3 in the config"),
        ({"model__positions": "sincos"}, "model.positions: 'sincos_mae' in the weights, 'sincos'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(autoencoder(), config(**changes))


def test_damage_in_a_decoder_is_an_error(read):
    arrays = autoencoder()
    arrays["decoder_pred.bias"][3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity: decoder_pred.bias"):
        read(arrays)
