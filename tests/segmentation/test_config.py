"""The shipped experiment, and the checks of its config."""

import pytest

from moco_jax import main
from moco_jax.segmentation import config, validation
from moco_jax.training.flat_config import flatten
from tests.segmentation.scenes import tiny_config
from tests.test_configs import change_defaults, get


def test_shipped_config_is_valid_and_states_the_recipe(repository):
    shipped = get(repository, "voc_segmentation")
    shipped.data.path = "VOCdevkit/VOC2012"
    for devices in (1, 8):
        validation.check(shipped, devices)
    assert shipped.task in main.TASKS
    flat = flatten(shipped)
    expected = {
        "epochs": 50,
        "batch_size": 16,
        "lr": 0.003,
        "lr_batch": 16,
        "lr_schedule": "step",
        "lr_drops": [0.7, 0.9],
        "weight_decay": 1e-4,
        "sgd_momentum": 0.9,
        "classes": 21,
        "head.width": 256,
        "head.dilation": 6,
        "data.train_split": "train_aug",
        "data.test_split": "val",
        "data.image_size": 513,
        "data.scale": [0.5, 2.0],
        "data.flip": 0.5,
    }
    assert {key: flat[key] for key in expected} == expected


def test_recipe_does_not_follow_the_defaults(repository, monkeypatch):
    expected = flatten(get(repository, "voc_segmentation"))
    others = {
        "epochs": 7.0,
        "batch_size": 7,
        "bn_groups": 7,
        "classes": 7,
        "head.width": 7,
        "head.dilation": 7,
        "lr": 0.7,
        "lr_batch": 7,
        "lr_schedule": "other",
        "lr_update": "other",
        "lr_drops": (0.7,),
        "warmup_epochs": 7.0,
        "sgd_momentum": 0.7,
        "weight_decay": 0.7,
        "data.train_split": "other",
        "data.test_split": "other",
        "data.image_size": 7,
        "data.scale": (0.7,),
        "data.flip": 0.7,
    }
    change_defaults(monkeypatch, config, "base", others)
    assert flatten(get(repository, "voc_segmentation")) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": ""}, "pretrained='' names no encoder; give --config.pretrained="),
        ({"data__path": ""}, "data.path='' names no scenes; give --config.data.path=VOCdevkit"),
        ({"classes": 300}, "classes=300 must be at most 255"),
        ({"data__scale": (2.0, 0.5)}, "data.scale=[2.0, 0.5] must be the lowest and the highest"),
        ({"data__scale": (1.0,)}, "data.scale=[1.0] must be the lowest and the highest"),
        ({"data__flip": 2.0}, "data.flip=2.0 must lie between 0 and 1"),
        ({"data__mean": (0.5, 0.5)}, "data.mean=[0.5, 0.5] must be three numbers"),
        ({"head__dilation": 0}, "head.dilation=0 must be a whole number from 1 to"),
        ({"batch_size": 12}, "batch_size=12 must be a multiple of the 8 devices"),
        ({"from_scratch": True, "baseline": True}, "which this run already is"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
    ],
)
def test_error_names_the_value_and_what_is_allowed(changes, message):
    with pytest.raises(ValueError) as error:
        validation.check(tiny_config("VOC2012", "runs/x", **changes), 8)
    assert message in str(error.value)


def test_key_of_another_task_is_unknown():
    changed = tiny_config("VOC2012", "runs/x")
    with changed.unlocked():
        changed.mixup = 0.1
    with pytest.raises(ValueError, match="unknown key 'mixup'"):
        validation.check(changed, 1)
