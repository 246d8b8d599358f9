"""The shipped experiments are the recipes that they name."""

import importlib.util

import pytest

from moco_jax import config as config_lib
from moco_jax.pretraining import validation


def get(repository, name: str, *argument):
    spec = importlib.util.spec_from_file_location(name, repository / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


@pytest.mark.parametrize(
    "which",
    [
        ("digits",),
        ("cifar10",),
        ("cifar10", "symmetric"),
        ("cifar10", "end_to_end"),
        ("cifar10", "simclr"),
        ("imagenet",),
        ("imagenet", "v1"),
        ("imagenet", "end_to_end"),
        ("folder", "/images"),
    ],
)
@pytest.mark.parametrize("devices", [1, 8])
def test_each_is_valid(repository, which, devices):
    validation.check(get(repository, *which), devices)


def test_v2_is_the_papers(repository):
    flat = config_lib.flatten(get(repository, "imagenet"))
    expected = {
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.03,
        "lr_schedule": "cosine",
        "lr_update": "epoch",
        "warmup_epochs": 0,
        "weight_decay": 1e-4,
        "sgd_momentum": 0.9,
        "momentum": 0.999,
        "queue_size": 65536,
        "temperature": 0.2,
        "bn_groups": 8,
        "shuffle_bn": True,
        "symmetric": False,
        "dtype": "float32",
        "model.name": "resnet50",
        "model.stem": "imagenet",
        "model.head": "mlp",
        "model.dim": 128,
        "data.image_size": 224,
    }
    assert {key: flat[key] for key in expected} == expected
    ops = [op["op"] for op in flat["views"][0]]
    assert ops == ["random_resized_crop", "color_jitter", "grayscale", "blur", "flip"]


def test_v1_differs_as_the_papers_do(repository):
    v1, v2 = (config_lib.flatten(get(repository, "imagenet", v)) for v in ("v1", "v2"))
    changed = {key: v1[key] for key in v1 if v1[key] != v2[key] and key != "views"}
    assert changed == {
        "name": "imagenet_v1",
        "model.head": "linear",
        "temperature": 0.07,
        "lr_schedule": "step",
    }
    assert [op["op"] for op in v1["views"][0]][1:] == ["grayscale", "color_jitter", "flip"]


def test_cifar_is_the_demos(repository):
    flat = config_lib.flatten(get(repository, "cifar10"))
    expected = {
        "epochs": 200,
        "batch_size": 512,
        "lr": 0.06,
        "lr_batch": 512,
        "weight_decay": 5e-4,
        "momentum": 0.99,
        "queue_size": 4096,
        "temperature": 0.1,
        "bn_groups": 8,
        "model.name": "resnet18",
        "model.stem": "small",
        "model.head": "linear",
        "knn.k": 200,
        "knn.temperature": 0.1,
        "knn.features": "head",
    }
    assert {key: flat[key] for key in expected} == expected
