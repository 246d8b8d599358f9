"""Compares features with the real libraries', for weights read from and written for them."""

import re

import pytest

from moco_jax.convert import targets
from moco_jax.weights import sources
from tests.weights.networks import (
    assert_close,
    assert_same,
    features,
    in_torch,
    library,
    random_images,
    randomise,
    source,
)


def loaded(lines: list[str]):
    """Returns the model that the printed lines load; runs them unchanged."""
    scope = {}
    exec("\n".join(line.strip() for line in lines if line.startswith("  ")), scope)
    return scope["model"].eval()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "wide_resnet50_2")]


@pytest.mark.parametrize("name", ["resnet18", *SLOW])
def test_torchvision_networks_are_read_and_written(name, tmp_path):
    torch, torchvision = library("torch"), library("torchvision")
    library("timm")
    library("transformers")
    original = randomise(getattr(torchvision.models, name)())
    torch.save(original.state_dict(), tmp_path / "in.pth")
    read = sources.read(tmp_path / "in.pth")
    found = read.pretrained
    model = found.config.model
    assert (model.name, model.stem, model.width) == (name, "imagenet", 1)
    assert read.left_out == ["the classifier of 1000 classes"] and not found.has_head

    images = random_images(64)
    original.fc = torch.nn.Identity()
    want = in_torch(original, images)
    assert_close(features(found, images), want)
    for to, out in (("torchvision", "out.pth"), ("timm", "out.safetensors"), ("huggingface", "hf")):
        if to == "huggingface" and name.startswith("wide"):
            with pytest.raises(ValueError, match="can't express wide_resnet50_2"):
                targets.write(read, to, tmp_path / out)
            continue
        lines = targets.write(read, to, tmp_path / out)
        assert_close(in_torch(loaded(lines), images), want)
        back = sources.read(tmp_path / out).pretrained
        assert_same(back.variables, found.variables)
        assert back.config.model.to_dict() == model.to_dict()


@pytest.mark.parametrize(
    "model",
    [
        dict(name="resnet10", width=1.0, stem="small"),
        dict(name="resnext50_32x4d", width=1.0, stem="imagenet"),
    ],
)
def test_other_networks_are_written(model, tmp_path):
    """Covers the small stem, groups, and a network that the libraries have no name for."""
    library("torchvision"), library("timm")
    encoder, images = source(**model), random_images(32)
    want = features(encoder.pretrained, images)
    for to, out in (("torchvision", "out.pth"), ("timm", "out.safetensors")):
        assert_close(in_torch(loaded(targets.write(encoder, to, tmp_path / out)), images), want)


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_wide_networks_are_written_for_hugging_face(name, tmp_path):
    """A width other than 1, as in R50w2x; narrow, so the test is fast."""
    library("torch"), library("transformers")
    encoder, images = source(name=name, width=0.5, stem="imagenet"), random_images(64)
    model = loaded(targets.write(encoder, "huggingface", tmp_path / "out"))
    assert type(model).__name__ == "ResNetModel"
    assert_close(in_torch(model, images), features(encoder.pretrained, images))


def test_hugging_face_networks_are_read(tmp_path):
    transformers = library("transformers")
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, layer_type="basic"
    )
    network = randomise(transformers.ResNetForImageClassification(config))
    network.save_pretrained(tmp_path / "net")
    read = sources.read(tmp_path / "net")
    assert read.left_out == ["the classifier of 2 classes"]
    assert read.pretrained.config.model.width == 0.25
    images = random_images(64)
    assert_close(features(read.pretrained, images), in_torch(network.resnet, images))

    config.downsample_in_bottleneck = True
    config.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=re.escape("downsample_in_bottleneck=True (allowed: Fal")):
        sources.read(tmp_path / "net")


def test_timm_networks_are_read_or_refused(tmp_path):
    timm, save = library("timm"), library("safetensors.torch").save_file
    network = randomise(timm.create_model("resnet18", num_classes=7))
    save(network.state_dict(), tmp_path / "model.safetensors")
    read = sources.read(tmp_path / "model.safetensors")
    assert read.left_out == ["the classifier of 7 classes"]
    network.fc = library("torch").nn.Identity()
    images = random_images(32)
    assert_close(features(read.pretrained, images), in_torch(network, images))
    for name, message in (
        ("resnet18d", "ResNet-D of timm"),
        ("seresnet18", r"unexpected layer1.0.se.fc1.bias"),
        ("resnet26", r"Bottlenecks \(2, 2, 2, 2\)"),
    ):
        other = tmp_path / f"{name}.safetensors"
        save(timm.create_model(name).state_dict(), other)
        with pytest.raises(ValueError, match=message):
            sources.read(other)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    torch = library("torch")

    class Touches:
        def __reduce__(self):
            return ((tmp_path / "ran").touch, ())

    torch.save({"state_dict": Touches()}, tmp_path / "harm.pth")
    with pytest.raises(ValueError, match="is not executed"):
        sources.read(tmp_path / "harm.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(torch.nn.ReLU(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="executed: torch.nn.modules.activation.ReLU; save a st"):
        sources.read(tmp_path / "whole.pth")
