"""The shipped supervised experiments, the checks of their configs, and the start of a run."""

import numpy as np
import pytest

from moco_jax import main
from moco_jax.config import IMAGENET_MEAN
from moco_jax.supervised import config as supervised_config
from moco_jax.supervised import start, validation
from moco_jax.supervised.kinds import KINDS
from moco_jax.supervised.run import fit_batch, fit_start
from moco_jax.training import comparison
from moco_jax.training.flat_config import flatten
from tests.supervised.tiny import encoder_variables, task_config, write_encoder
from tests.test_configs import change_defaults, get
from tests.tiny import tiny_config

EXPERIMENTS = [
    *[("imagenet_linear", v) for v in ("v1", "v2")],
    *[("imagenet_linear", f"v3_{v}") for v in ("r50", "vit_s", "vit_b", "vit_l")],
    *[(f"imagenet_{task}", f"mae_vit_{v}") for task in ("linear", "finetune") for v in "bl"],
    *[
        (f"{data}_{task}", "mae")
        for data in ("cifar10", "digits")
        for task in ("linear", "finetune")
    ],
    *[(f"{data}_linear",) for data in ("cifar10", "digits")],
    ("folder_linear", "/images"),
    *[
        (f"{data}_finetune", v)
        for data in ("imagenet", "cifar10", "digits")
        for v in ("full", "10percent", "1percent")
    ],
    *[("imagenet_finetune", f"v3_{v}") for v in ("vit_s", "vit_b")],
    *[("transfer", v) for v in ("cifar10", "cifar100", "flowers", "pets")],
]

# Defaults that differ from every recipe that reads the key.
OTHER_DEFAULTS = {
    "epochs": 7.0,
    "batch_size": 7,
    "lr_batch": 7,
    "lr_schedule": "other",
    "lr_update": "other",
    "warmup_epochs": 7.0,
    "sgd_momentum": 0.7,
    "weight_decay": 0.7,
    "data.source": "other",
    "view": (),
}
OTHER_DEFAULTS_OF_TASK = {
    "linear": {"lr": (0.7,), "lr_drops": (0.7,), "optimizer": "other", "feature_norm": True},
    "finetune": {
        "lr": 0.7,
        "head_lr": 0.7,
        "head_std": 0.7,
        "decay_all": False,
        "min_lr": 0.7,
        "layer_decay": 0.7,
        "optimizer": "other",
        "bn_groups": 7,
        "label_smoothing": 0.7,
        "mixup": 0.7,
        "cutmix": 0.7,
        "ema": 0.7,
    },
}


@pytest.mark.parametrize("which", EXPERIMENTS)
def test_config_is_valid(repository, which):
    for devices in (1, 8):
        config = fit_batch(get(repository, *which), 1_000, devices)
        validation.check(config, devices)
    assert config.task in main.TASKS


@pytest.mark.parametrize("devices", range(1, 9))
@pytest.mark.parametrize("images", [2, 3, 9, 20, 55, 200, 5_000, 1_281_167])
def test_the_batch_of_own_images_fits_their_number(repository, images, devices):
    config = fit_batch(get(repository, "folder_linear", "/images"), images, devices)
    validation.check(config, devices)
    if images >= devices:
        assert config.batch_size <= images
    assert fit_batch(config, 7, devices) is config
    assert config.batch_size == 256 or images < 5_000 or devices in (3, 5, 6, 7)


@pytest.mark.parametrize("which", EXPERIMENTS)
def test_recipe_does_not_follow_the_defaults(repository, monkeypatch, which):
    expected = get(repository, *which)
    changes = OTHER_DEFAULTS | OTHER_DEFAULTS_OF_TASK[expected.task]
    if expected.optimizer == "adamw":
        changes |= {"adam_b1": 0.7, "adam_b2": 0.7, "adam_eps": 0.7, "model.drop_path": 0.7}
    elif expected.optimizer == "lars":
        changes |= {"lars_trust": 0.7}
    if expected.get("fresh_norm"):
        changes |= {"model.positions": "sincos_mae", "model.pool": "other"}
    if expected.get("feature_norm"):
        changes |= {"bn_groups": 7}
    change_defaults(monkeypatch, supervised_config, expected.task, changes)
    assert flatten(get(repository, *which)) == flatten(expected)


def test_linear_protocol_matches_the_reference(repository):
    for variant in ("v1", "v2"):
        flat = flatten(get(repository, "imagenet_linear", variant))
        expected = {
            "task": "linear",
            "pretrained": f"runs/imagenet_{variant}",
            "epochs": 100,
            "batch_size": 256,
            "lr": [30.0],
            "lr_batch": 256,
            "lr_schedule": "step",
            "lr_update": "epoch",
            "lr_drops": [0.6, 0.8],
            "sgd_momentum": 0.9,
            "weight_decay": 0.0,
            "warmup_epochs": 0.0,
            "dtype": "float32",
            "data.image_size": 224,
            "data.eval_resize": 256,
            "view": [
                {"op": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]},
                {"op": "flip", "p": 0.5},
            ],
        }
        assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize("encoder", ["vit_s", "vit_b"])
def test_fine_tuning_of_v3_matches_deit(repository, monkeypatch, encoder):
    others = {"adam_b1": 0.7, "adam_b2": 0.7, "adam_eps": 0.7, "model.drop_path": 0.7}
    change_defaults(monkeypatch, supervised_config, "finetune", others)
    flat = flatten(get(repository, "imagenet_finetune", f"v3_{encoder}"))
    expected = {
        "name": f"imagenet_finetune_v3_{encoder}",
        "pretrained": f"runs/imagenet_v3_{encoder}",
        "epochs": 150,
        "batch_size": 1024,
        "lr": 5e-4,
        "lr_batch": 512,
        "head_lr": 1.0,
        "lr_schedule": "cosine",
        "lr_update": "epoch",
        "warmup_epochs": 5.0,
        "min_lr": 1e-5,
        "optimizer": "adamw",
        "adam_b1": 0.9,
        "adam_b2": 0.999,
        "adam_eps": 1e-8,
        "weight_decay": 0.05,
        "decay_all": False,
        "layer_decay": 1.0,
        "model.drop_path": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_fraction": 1.0,
        "view": [
            {"op": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]},
            {"op": "flip", "p": 0.5},
            {"op": "rand_augment", "magnitude": 9.0, "std": 0.5, "p": 0.5},
            {"op": "erase", "p": 0.25},
        ],
    }
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("encoder", "epochs", "lr", "decay", "drop"),
    [("vit_b", 100, 5e-4, 0.65, 0.1), ("vit_l", 50, 1e-3, 0.75, 0.2)],
)
def test_fine_tuning_of_mae_matches_the_reference(repository, encoder, epochs, lr, decay, drop):
    flat = flatten(get(repository, "imagenet_finetune", f"mae_{encoder}"))
    expected = {
        "name": f"imagenet_finetune_mae_{encoder}",
        "pretrained": f"runs/imagenet_mae_{encoder}",
        "epochs": epochs,
        "batch_size": 1024,
        "lr": lr,
        "lr_batch": 256,
        "head_lr": 1.0,
        "head_std": 2e-5,
        "lr_schedule": "cosine",
        "lr_update": "step",
        "warmup_epochs": 5.0,
        "min_lr": 1e-6,
        "optimizer": "adamw",
        "adam_b1": 0.9,
        "adam_b2": 0.999,
        "weight_decay": 0.05,
        "decay_all": False,
        "layer_decay": decay,
        "model.pool": "mean",
        "model.positions": "learned",
        "model.drop_path": drop,
        "fresh_norm": True,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_fraction": 1.0,
    }
    assert {key: flat[key] for key in expected} == expected
    assert flat["view"][0]["interpolation"] == "bicubic"
    assert flat["view"][1:] == flatten(get(repository, "imagenet_finetune", "v3_vit_b"))["view"][1:]


@pytest.mark.parametrize("encoder", ["vit_b", "vit_l"])
def test_linear_protocol_of_mae_matches_the_reference(repository, encoder):
    flat = flatten(get(repository, "imagenet_linear", f"mae_{encoder}"))
    expected = {
        "name": f"imagenet_linear_mae_{encoder}",
        "pretrained": f"runs/imagenet_mae_{encoder}",
        "epochs": 90,
        "batch_size": 16384,
        "bn_groups": 32,
        "lr": [0.1],
        "lr_batch": 256,
        "lr_schedule": "cosine",
        "lr_update": "step",
        "warmup_epochs": 10.0,
        "optimizer": "lars",
        "lars_trust": 0.001,
        "sgd_momentum": 0.9,
        "weight_decay": 0.0,
        "feature_norm": True,
        "data.image_size": 224,
        "data.eval_resize": 256,
        "view": [
            {
                "op": "random_resized_crop",
                "scale": [0.08, 1.0],
                "ratio": [3 / 4, 4 / 3],
                "interpolation": "bicubic",
            },
            {"op": "flip", "p": 0.5},
        ],
    }
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(("encoder", "lr"), [("r50", 0.1), ("vit_s", 3.0), ("vit_b", 3.0)])
def test_linear_protocol_of_v3_matches_the_reference(repository, encoder, lr):
    flat = flatten(get(repository, "imagenet_linear", f"v3_{encoder}"))
    expected = {
        "name": f"imagenet_linear_v3_{encoder}",
        "pretrained": f"runs/imagenet_v3_{encoder}",
        "epochs": 90,
        "batch_size": 1024,
        "lr": [lr],
        "lr_batch": 256,
        "lr_schedule": "cosine",
        "lr_update": "epoch",
        "sgd_momentum": 0.9,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "data.image_size": 224,
        "data.eval_resize": 256,
    }
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("linear", {"pretrained": ""}, "pretrained='' names no encoder; give --config.pretrained="),
        ("linear", {"lr": (1.0, -1.0)}, "lr=(1.0, -1.0) must be one or more numbers above 0"),
        ("linear", {"lr": ("fast",)}, "lr=('fast',) must be one or more numbers above 0"),
        ("linear", {"lr": (1.0, 1.0)}, "has a value twice"),
        ("linear", {"l2": ()}, "l2=() must be one or more numbers, 0 or more"),
        ("linear", {"label_fraction": 0.0}, "label_fraction=0 leaves no labels"),
        (
            "linear",
            {"label_fraction": 0.1, "label_list": "x"},
            "set one of label_list and label_fraction",
        ),
        ("linear", {"batch_size": 30}, "must be a multiple of the 8 devices"),
        ("linear", {"steps": None}, "set one of epochs and steps"),
        ("linear", {"optimizer": "adamw"}, "optimizer='adamw' is unknown; allowed: sgd, lars"),
        ("linear", {"feature_norm": True, "bn_groups": 7}, "must be a multiple of bn_groups=7"),
        ("finetune", {"lr": 0.0}, "lr=0.0 must be above 0"),
        ("finetune", {"head_std": -1.0}, "head_std=-1.0 must be 0 or more"),
        ("finetune", {"model__positions": "learnt"}, "did you mean 'learned'?"),
        ("finetune", {"ema": 1.5}, "ema=1.5 must lie between 0 and 1"),
        ("finetune", {"optimizer": "adam"}, "did you mean 'adamw'? allowed: sgd, adamw"),
        ("finetune", {"layer_decay": 0.0}, "layer_decay=0.0 must be above 0, and at most 1"),
        ("finetune", {"layer_decay": 1.5}, "layer_decay=1.5 must be above 0, and at most 1"),
        ("finetune", {"min_lr": -1.0}, "min_lr=-1.0 must be 0 or more"),
        ("finetune", {"min_lr": 0.1}, "min_lr=0.1 must be at most 0.03, the highest rate"),
        ("finetune", {"adam_b2": 1.0}, "adam_b2=1.0 must be 0 or more, and below 1"),
        ("finetune", {"model__drop_path": 1.0}, "model.drop_path=1.0 must be 0 or more, and below"),
        ("finetune", {"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
        ("finetune", {"from_scratch": True, "baseline": True}, "which this run already is"),
        ("finetune", {"from_scratch": True, "pretrained": ""}, "model.name='' is unknown"),
        ("finetune", {"view": ({"op": "flip"},)}, "view: the first op must be"),
    ],
)
def test_error_names_the_value_and_what_is_allowed(task, changes, message):
    with pytest.raises(ValueError) as error:
        validation.check(task_config(task, "runs/x", **changes), 8)
    assert message in str(error.value)


def test_groups_do_not_matter_where_batch_norm_is_frozen_or_absent():
    changes = {"batch_size": 40, "bn_groups": 7, "model__name": "resnet10"}
    vit = changes | {"model__name": "vit_tiny", "model__stem": "patch"}
    validation.check(task_config("linear", "runs/x", **changes), 8)
    validation.check(task_config("finetune", "runs/x", **vit), 8)
    validation.check(task_config("finetune", "runs/x", **vit | {"batch_size": 8}), 8)
    for normalised in (changes, vit | {"model__stem": "conv"}):
        with pytest.raises(ValueError, match="must be a multiple of bn_groups=7"):
            validation.check(task_config("finetune", "runs/x", **normalised), 8)


def test_groups_are_those_of_the_encoder_that_is_read(tmp_path):
    path = write_encoder(tmp_path / "tiny.safetensors")
    config = task_config("finetune", path, bn_groups=7)
    validation.check(config, 1)
    with pytest.raises(ValueError, match="must be a multiple of bn_groups=7"):
        fit_start(start.begin(config), tmp_path, 1, None)


def test_key_of_another_task_is_unknown():
    config = task_config("linear", "runs/x")
    with config.unlocked():
        config.mixup = 0.1
    with pytest.raises(ValueError, match="unknown key 'mixup'"):
        validation.check(config, 1)


def test_image_preparation_comes_from_the_encoder(tmp_path):
    path = write_encoder(tmp_path / "tiny.safetensors")
    begun = start.begin(task_config("linear", path))
    assert begun.config.data.image_size == begun.config.data.eval_resize == 8
    assert begun.config.data.mean == IMAGENET_MEAN
    assert begun.config.model.name == "resnet10" and begun.config.model.width == 0.125
    np.testing.assert_array_equal(
        begun.params["stem_conv"]["kernel"],
        encoder_variables()["params"]["backbone"]["stem_conv"]["kernel"],
    )
    other = start.begin(task_config("linear", path, data__image_size=16))
    assert other.config.data.eval_resize == 16
    assert "data.image_size is 16 here; the encoder was trained with 8" in other.notes
    with pytest.raises(ValueError, match="data.eval_resize=8 must be at least data.image_size=16"):
        start.begin(task_config("linear", path, data__image_size=16, data__eval_resize=8))


def test_a_given_network_that_is_not_the_encoders_is_named(tmp_path):
    path = write_encoder(tmp_path / "tiny.safetensors")
    given = {"model__name": "resnet10", "model__width": 2.0, "model__pool": "mean"}
    begun = start.begin(task_config("linear", path, **given))
    assert (begun.config.model.width, begun.config.model.pool) == (0.125, "cls")
    assert [line for line in begun.notes if "model." in line] == [
        "model.pool=mean has no effect: the encoder has cls",
        "model.width=2.0 has no effect: the encoder has 0.125",
    ]


def test_random_encoder_has_the_same_architecture_and_depends_on_the_seed(tmp_path):
    path = write_encoder(tmp_path / "tiny.safetensors")
    first, same, other = (
        start.begin(task_config("linear", path, from_scratch=True, seed=seed)).params["stem_conv"]
        for seed in (0, 0, 1)
    )
    trained = encoder_variables()["params"]["backbone"]["stem_conv"]["kernel"]
    assert first["kernel"].shape == trained.shape
    np.testing.assert_array_equal(first["kernel"], same["kernel"])
    assert np.abs(first["kernel"] - other["kernel"]).max() > 0.01
    assert np.abs(first["kernel"] - trained).max() > 0.01
    own = task_config(
        "finetune", from_scratch=True, model__name="resnet10", model__width=0.125,
        data__image_size=8, data__eval_resize=8,
    )  # fmt: skip
    validation.check(own, 1)
    assert "random weights of a resnet10" in start.begin(own).notes[0]


def test_remat_dtype_and_groups_come_from_the_task():
    origin = tiny_config(remat=True, dtype="bfloat16")
    backbone = start._backbone(task_config("finetune", "", bn_groups=2), origin)
    assert (backbone.remat, backbone.dtype, backbone.bn_groups) == (False, "float32", 2)


def test_a_resumed_run_may_drop_paths_more_often_but_keeps_its_network(tmp_path):
    def compare(key, *values):
        comparison.check_structure(tmp_path, {key: values}, KINDS["finetune"].structure)

    compare("model.drop_path", 0.0, 0.1)
    for key, *values in (("model.patch", 16, 8), ("model.pool", "cls", "mean")):
        with pytest.raises(ValueError, match=f"{key}: {values[0]!r} in the checkpoint"):
            compare(key, *values)
