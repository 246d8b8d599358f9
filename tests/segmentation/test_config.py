"""The shipped experiment, and the rules of its config."""

import pytest

from moco_jax import config as pretraining
from moco_jax import main
from moco_jax.segmentation import config
from tests.segmentation.scenes import tiny_config
from tests.test_configs import get


def test_the_shipped_one_is_the_papers(repository):
    shipped = get(repository, "voc_segmentation")
    shipped.data.path = "VOCdevkit/VOC2012"
    for devices in (1, 8):
        config.check(shipped, devices)
    assert shipped.task in main.TASKS
    flat = pretraining.flatten(shipped)
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
        ({"head__dilation": 0}, "head.dilation=0 must be a whole number, at least 1"),
        ({"batch_size": 12}, "batch_size=12 must divide by the 8 devices"),
        ({"from_scratch": True, "baseline": True}, "which this run already is"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
    ],
)
def test_each_problem_says_what_was_got_and_what_is_allowed(changes, message):
    with pytest.raises(ValueError) as error:
        config.check(tiny_config("VOC2012", "runs/x", **changes), 8)
    assert message in str(error.value)


def test_unknown_keys_are_those_of_the_task():
    changed = tiny_config("VOC2012", "runs/x")
    with changed.unlocked():
        changed.mixup = 0.1
    with pytest.raises(ValueError, match="unknown key 'mixup'"):
        config.check(changed, 1)
