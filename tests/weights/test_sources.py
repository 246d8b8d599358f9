"""Errors name what is wrong with a file; safetensors only, which need no torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from moco_jax.weights import sources
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.tiny import tiny_config
from tests.weights.networks import encoder

WEIGHT = np.ones((4, 4), np.float32)


@pytest.fixture(scope="module")
def arrays():
    """A narrow ResNet-10 under torchvision's names."""
    found = encoder(head=False)
    return to_torch(found.variables, NAMINGS["torchvision"], found.config)


@pytest.fixture
def read(tmp_path):
    def read(arrays, config=None, name="file.safetensors"):
        save_file(arrays, tmp_path / name)
        return sources.read(tmp_path / name, config)

    return read


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone.bottom_up.res2.0.conv1.weight", "is a detection model"),
        ("rpn.head.conv.weight", "is a detection model"),
        ("module.momentum_encoder.conv1.weight", "unknown format with momentum_encoder.conv1"),
        (
            "blocks.0.attn.qkv.weight",
            "unknown format with blocks.0.attn.qkv.weight; allowed: a checkpoint",
        ),
        ("cls_token", "is a vision transformer with other names than timm's and Hugging Face's"),
        ("vit.embeddings.patch_embeddings.projection.weight", "is a vision transformer with"),
        ("conv1.0.weight", "is a ResNet-D of timm"),
    ],
)
def test_error_names_the_unsupported_format(read, name, message):
    with pytest.raises(ValueError, match=message):
        read({name: WEIGHT})


def test_error_names_missing_and_unexpected_arrays(read, arrays):
    assert read(arrays).pretrained.config.model.name == "resnet10"
    less = {name: x for name, x in arrays.items() if name != "layer2.0.bn1.running_var"}
    with pytest.raises(
        ValueError, match="does not match resnet10: missing layer2.0.bn1.running_var$"
    ):
        read(less)
    with pytest.raises(ValueError, match="unexpected layer1.0.attention.weight"):
        read(arrays | {"layer1.0.attention.weight": WEIGHT})
    other = np.ones((3, 8, 3, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"layer1.0.conv1.weight has shape \(3, 8, 3, 3\), expected"
    ):
        read(arrays | {"layer1.0.conv1.weight": other})
    with pytest.raises(ValueError, match="is not a ResNet of four stages"):
        read({name: x for name, x in arrays.items() if not name.startswith("layer4")})
    with pytest.raises(ValueError, match="5x5 on 1 channels; allowed: 7x7 or 3x3 on 3"):
        read(arrays | {"conv1.weight": np.ones((8, 1, 5, 5), np.float32)})


def test_half_precision_becomes_float32(read, arrays):
    found = read({name: x.astype(np.float16) for name, x in arrays.items()}).pretrained
    kernel = found.variables["params"]["backbone"]["stem_conv"]["kernel"]
    assert kernel.dtype == np.float32
    want = arrays["conv1.weight"].astype(np.float16).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, want)


def test_parallel_wrappers_are_stripped(read, arrays):
    found = read({f"module.{name}": x for name, x in arrays.items()})
    assert found.pretrained.config.model.name == "resnet10"


def test_a_config_is_used_or_refused(read, arrays):
    given = tiny_config(data__image_size=16, data__eval_resize=16)
    assert read(arrays, given).pretrained.config.data.image_size == 16
    with pytest.raises(ValueError, match="model.name: 'resnet10' in the weights, 'resnet18' in"):
        read(arrays, tiny_config(model__name="resnet18"))
    assert read(arrays).pretrained.config.data.image_size == 224


def test_other_files_are_refused(read, tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        sources.read(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no checkpoint; allowed: a workdir"):
        sources.read(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="damaged safetensors"):
        sources.read(tmp_path / "cut.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="neither a safetensors file nor a torch file"):
        sources.read(tmp_path / "text.pth")
    found = encoder(head=False, stem="imagenet")
    names = to_torch(found.variables, NAMINGS["huggingface"], found.config)
    with pytest.raises(ValueError, match="need their config.json"):
        read(names)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "regnet"}))
    with pytest.raises(ValueError, match="model_type='regnet' .allowed: 'resnet'"):
        read(names)
