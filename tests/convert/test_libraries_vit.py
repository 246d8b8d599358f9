"""Compares ViT features with timm's and Hugging Face's, for weights read from and written for them.

No weights are downloaded: the networks are built by name, smaller, with random weights.
"""

import functools
import re

import jax
import numpy as np
import pytest

from moco_jax.convert import targets
from moco_jax.models.encoder import Encoder
from moco_jax.weights import sources
from tests.convert.test_libraries import loaded
from tests.weights.networks import (
    assert_close,
    assert_same,
    features,
    library,
    random_images,
    source,
)

SIZE = 32
HEADS = {"vit_tiny": 3, "vit_small": 6, "vit_base": 12, "vit_large": 16}


def random_weights(module):
    """Redraws all parameters; returns the module in evaluation mode."""
    torch = library("torch")
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, near, 0.1)
    return module.eval()


def in_library(model, images: np.ndarray, pool: str = "cls", dtype: str = "float32"):
    """Returns the features of a timm or Hugging Face ViT before its classifier."""
    torch = library("torch")
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(getattr(torch, dtype))
    with torch.no_grad():
        if not hasattr(model, "forward_features"):
            if pool == "cls":
                return model(x).last_hidden_state[:, 0].numpy()
            tokens = model(x, output_hidden_states=True).hidden_states[-1]
            return model.layernorm(tokens[:, 1:].mean(1)).numpy()
        return model.forward_head(model.forward_features(x), pre_logits=True).numpy()


def in_float64(found, images: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        found.config.dtype = "float64"
        trees = jax.tree.map(lambda x: np.asarray(x, np.float64), found.variables)
        apply = functools.partial(found.encoder.apply, method=Encoder.features)
        return np.asarray(jax.jit(apply)(trees, images.astype(np.float64)))


@pytest.mark.parametrize("name", [*HEADS])
def test_timm_vits_are_read_and_written(name, tmp_path):
    timm, save = library("timm"), library("safetensors.torch").save_file
    library("transformers")
    patch = 8 if name == "vit_tiny" else 16
    options = {"img_size": SIZE, "patch_size": patch, "depth": 2, "num_classes": 5}
    model = random_weights(timm.create_model(f"{name}_patch16_224", **options))
    save(model.state_dict(), tmp_path / "in.safetensors")
    read = sources.read(tmp_path / "in.safetensors")
    found, kept = read.pretrained, read.pretrained.config.model
    assert (kept.name, kept.width, kept.patch, kept.depth) == (name, 1, patch, 2)
    assert kept.positions == "learned" and found.config.data.image_size == SIZE
    assert read.left_out == ["the classifier of 5 classes"]
    [note] = read.notes
    assert note.startswith(f"heads {HEADS[name]}: 64 values a head; ")
    images = random_images(SIZE)
    want = in_library(model, images)
    assert_close(features(found, images), want)
    for to, out in (("timm", "out.safetensors"), ("huggingface", "out")):
        written = loaded(targets.write(read, to, tmp_path / out))
        assert_close(in_library(written, images), want)
        back = sources.read(tmp_path / out).pretrained
        assert_same(back.variables, found.variables)
        assert back.config.model.to_dict() == kept.to_dict()


def test_features_equal_timms_in_double_precision(tmp_path):
    timm, save = library("timm"), library("safetensors.torch").save_file
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2)
    model = random_weights(model)
    save(model.state_dict(), tmp_path / "in.safetensors")
    images = random_images(16)
    got = in_float64(sources.read(tmp_path / "in.safetensors").pretrained, images)
    want = in_library(model.double(), images, dtype="float64")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("names", ["4", "5"])
def test_hugging_face_vits_are_read(names, tmp_path):
    """transformers 5 writes the names of 4; its modules have names of 5."""
    transformers, save = library("transformers"), library("safetensors.torch").save_file
    config = transformers.ViTConfig(
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 256, "image_size": SIZE, "patch_size": 8},
        layer_norm_eps=1e-6,
    )
    model = random_weights(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path / "in")
    if names == "5":
        save(model.state_dict(), tmp_path / "in" / "model.safetensors")
    read = sources.read(tmp_path / "in")
    assert read.left_out == ["the classifier of 2 classes"] and read.notes == ("prefix 'vit.'",)
    assert read.pretrained.config.model.heads == 4
    images = random_images(SIZE)
    assert_close(features(read.pretrained, images), in_library(model.vit, images))
    model = model.double()
    want = in_library(model.vit, images, dtype="float64")
    got = in_float64(read.pretrained, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_the_default_epsilon_of_hugging_face_is_told(tmp_path):
    transformers = library("transformers")
    config = transformers.ViTConfig(
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 256, "image_size": SIZE, "patch_size": 8},
    )
    model = random_weights(transformers.ViTModel(config, add_pooling_layer=True))
    model.save_pretrained(tmp_path / "in")
    read = sources.read(tmp_path / "in")
    assert read.left_out == ["pooler"]
    [note] = read.notes
    assert note.startswith("layer_norm_eps 1e-12 in config.json, 1e-06 here: features of tokens")
    images = random_images(SIZE)
    assert_close(features(read.pretrained, images), in_library(model, images))


@pytest.mark.parametrize(
    "model",
    [
        dict(name="vit_small", width=1 / 6, heads=4, depth=2, patch=4),
        dict(name="vit_huge", width=1.0, heads=0, depth=1, patch=4),
        dict(name="vit_tiny", width=1.0, heads=6, depth=1, patch=4, pool="mean"),
    ],
)
def test_our_vits_are_written(model, tmp_path):
    """Fixed positions, other numbers of heads, mean pooling."""
    library("timm"), library("transformers")
    given = source(stem="patch", **model)
    images, pool = random_images(8), model.get("pool", "cls")
    want = features(given.pretrained, images)
    for to, out in (("timm", "out.safetensors"), ("huggingface", "out")):
        written = loaded(targets.write(given, to, tmp_path / out))
        assert_close(in_library(written, images, pool), want)
    back = sources.read(tmp_path / "out.safetensors", heads=model["heads"] or None).pretrained
    assert back.config.model.pool == pool
    backbone = given.pretrained.variables["params"]["backbone"]
    assert_same(back.variables, {"params": {"backbone": backbone}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tiny_distilled_patch16_224", "a distillation token.*: dist_token"),
        ("vit_small_patch14_reg4_dinov2", "register tokens.*: reg_token"),
        ("vit_small_patch14_dinov2", "layer scale.*: blocks.0.ls1.gamma"),
        ("vit_base_patch16_rpn_224", "cls_token is absent; a ViT needs a class token"),
        ("vit_base_patch16_clip_224", "a norm before the blocks.*: norm_pre.bias"),
        ("vit_medium_patch16_gap_240", "layer scale.*: blocks.0.ls1.gamma"),
        ("vit_base_patch16_siglip_224", "attention pooling.*: attn_pool"),
        ("beit_base_patch16_224", "layer scale|relative positions"),
        ("swin_tiny_patch4_window7_224", "a vision transformer with other names"),
        ("eva02_tiny_patch14_224", "a gated MLP|norms inside the MLP|unexpected"),
    ],
)
def test_other_vits_of_timm_are_refused_by_name(name, message, tmp_path):
    timm, save = library("timm"), library("safetensors.torch").save_file
    if name.startswith("swin"):
        options = {"depths": (1, 1, 1, 1)}
    else:
        options = {"depth": 1}
    state = timm.create_model(name, **options).state_dict()
    save({k: x.contiguous() for k, x in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors.*{message}"):
        sources.read(tmp_path / "a.safetensors")


def test_dinov2_of_hugging_face_is_refused(tmp_path):
    transformers = library("transformers")
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "a")
    message = re.escape("model_type='dinov2' (allowed: 'vit' or 'vit_mae')")
    with pytest.raises(ValueError, match=message):
        sources.read(tmp_path / "a")
