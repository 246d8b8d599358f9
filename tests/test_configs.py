"""The shipped experiments are the recipes that they name."""

import ast
import importlib.util
import logging

import pytest

from moco_jax import config as config_lib
from moco_jax import variants
from moco_jax.pretraining import fit, validation
from moco_jax.training.flat_config import flatten

EXPERIMENTS = [
    ("digits",),
    *[("digits", variant) for variant in ("v3", "v3_vit", "mae", "v3_mae")],
    *[
        ("cifar10", variant)
        for variant in (
            *("asymmetric", "symmetric", "end_to_end", "simclr"),
            *("memory_bank", "instdisc", "v3_r18", "v3_vit", "mae", "v3_mae"),
        )
    ],
    *[("imagenet", v) for v in ("v1", "v2", "end_to_end", "memory_bank", "instdisc")],
    *[("imagenet_v3", v) for v in ("r50", "vit_s", "vit_b", "vit_l", "vit_b_masked")],
    *[("imagenet_mae", v) for v in ("vit_b", "vit_l")],
    ("folder", "/images"),
]

# Defaults that differ from every shipped recipe.
OTHER_DEFAULTS = {
    "epochs": 7.0,
    "batch_size": 7,
    "model.name": "other",
    "model.stem": "other",
    "model.stem_init": "other",
    "model.width": 7.0,
    "pretext": "other",
    "lr": 0.7,
    "lr_batch": 7,
    "lr_schedule": "other",
    "lr_update": "other",
    "warmup_epochs": 7.0,
    "optimizer": "other",
    "weight_decay": 0.7,
    "data.source": "other",
    "data.image_size": 7,
    "data.eval_resize": 7,
    "data.mean": (0.7,),
    "data.std": (0.7,),
    "views": (),
}
OTHER_CONTRASTIVE_DEFAULTS = {
    "model.head": "other",
    "model.dim": 7,
    "model.predictor_layers": 7,
    "dictionary": "other",
    "key_encoder": "other",
    "momentum": 0.7,
    "momentum_schedule": "other",
    "temperature": 0.7,
    "loss_scale": "other",
    "symmetric": True,
    "bn_groups": 7,
    "shuffle_bn": False,
}
OTHER_MASKED_DEFAULTS = {
    "mask.fraction": 0.7,
    "mask.block": 7,
    "mask.normalize_pixels": False,
    "decoder.dim": 7,
    "decoder.depth": 7,
    "decoder.heads": 7,
}
# Defaults of keys that only some recipes use: (key, value that uses them), the other defaults.
OTHER_CONDITIONAL_DEFAULTS = {
    ("pretext", "contrastive"): OTHER_CONTRASTIVE_DEFAULTS,
    ("pretext", "masked"): OTHER_MASKED_DEFAULTS,
    ("pretext", "both"): OTHER_CONTRASTIVE_DEFAULTS
    | OTHER_MASKED_DEFAULTS
    | {"contrastive_weight": 0.7, "masked_weight": 0.7},
    ("dictionary", "memory_bank"): {
        "bank.negatives": 7,
        "bank.momentum": 0.7,
        "bank.loss": "other",
    },
    ("dictionary", "queue"): {"queue_size": 7},
    ("lr_schedule", "step"): {"lr_drops": (0.7,)},
    ("model.head", "mlp"): {"model.hidden": 7},
    ("model.head", "mlp_bn"): {"model.hidden": 7, "model.head_layers": 7},
    ("optimizer", "sgd"): {"sgd_momentum": 0.7},
    ("optimizer", "lars"): {"sgd_momentum": 0.7, "lars_trust": 0.7},
    ("optimizer", "adamw"): {
        "adam_b1": 0.7,
        "adam_b2": 0.7,
        "adam_eps": 0.7,
        "decay_all": False,
    },
    ("model.stem", "patch"): {
        "model.patch": 7,
        "model.heads": 7,
        "model.depth": 7,
        "model.pool": "other",
        "model.positions": "other",
        "model.vit_init": "other",
    },
}


def get(repository, name: str, *argument):
    spec = importlib.util.spec_from_file_location(name, repository / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


def change_defaults(monkeypatch, module, function: str, changes: dict) -> None:
    """Makes a function that returns a base config return it with other values."""
    original = getattr(module, function)

    def changed():
        config = original()
        config.update_from_flattened_dict(changes)
        return config

    monkeypatch.setattr(module, function, changed)


@pytest.mark.parametrize("which", EXPERIMENTS)
def test_config_is_valid(repository, caplog, which):
    with caplog.at_level(logging.WARNING, logger="absl"):
        for devices in (1, 8):
            validation.check(fit.trial(get(repository, *which), devices), devices)
    assert "has no effect" not in caplog.text


@pytest.mark.parametrize("which", EXPERIMENTS)
def test_recipe_does_not_follow_the_defaults(repository, monkeypatch, which):
    expected = flatten(get(repository, *which))
    changes = dict(OTHER_DEFAULTS)
    unread = ("dictionary", "model.head") if expected["pretext"] == "masked" else ()
    for (key, value), others in OTHER_CONDITIONAL_DEFAULTS.items():
        if expected[key] == value and key not in unread:
            changes |= others
    change_defaults(monkeypatch, config_lib, "base", changes)
    assert flatten(get(repository, *which)) == expected


def test_files_set_each_key_once(repository):
    files = [*repository.glob("configs/*.py"), *repository.glob("moco_jax/**/config.py")]
    assert len(files) > 15
    for file in files:
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                set_here = [
                    ast.unparse(target)
                    for statement in function.body
                    if isinstance(statement, ast.Assign)
                    for target in statement.targets
                    if isinstance(target, ast.Attribute)
                ]
                twice = {key for key in set_here if set_here.count(key) > 1}
                assert not twice, f"{file.name}: {function.name}"


def test_variant_sets_nested_keys_tuples_and_placeholders():
    config = config_lib.base()
    config.name = "file"
    crop = {"op": "random_resized_crop", "scale": (0.5, 1.0), "ratio": (1.0, 1.0)}
    changes = {"data.image_size": 32, "views": ((crop,),), "epochs": None, "steps": 5}
    variants.apply(config, {"small": changes}, "small")
    assert config.name == "file_small"
    assert (config.data.image_size, config.epochs, config.steps) == (32, None, 5)
    assert config.views == ((crop,),)


def test_unknown_variant_is_named():
    config = config_lib.base()
    config.name = "file"
    with pytest.raises(ValueError) as error:
        variants.apply(config, {"a": {}, "b": {}}, "c")
    assert str(error.value) == "the variant 'c' is unknown; allowed: no variant, a, b"


def test_v2_matches_the_paper(repository):
    flat = flatten(get(repository, "imagenet"))
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


def test_v3_matches_the_paper(repository):
    both = {
        "batch_size": 4096,
        "lr_batch": 256,
        "lr_schedule": "cosine",
        "lr_update": "step",
        "momentum": 0.99,
        "momentum_schedule": "cosine",
        "dictionary": "in_batch",
        "key_encoder": "momentum",
        "symmetric": True,
        "loss_scale": "2T",
        "bn_groups": 1,
        "model.head": "mlp_bn",
        "model.hidden": 4096,
        "model.dim": 256,
        "model.predictor_layers": 2,
        "data.image_size": 224,
    }
    resnet = {
        "epochs": 100,
        "warmup_epochs": 10,
        "lr": 0.6,
        "optimizer": "lars",
        "lars_trust": 0.001,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-6,
        "temperature": 1.0,
        "model.head_layers": 2,
        "model.predictor_last_norm": False,
        "model.zero_init_residual": True,
    }
    vit = {
        "epochs": 300,
        "warmup_epochs": 40,
        "lr": 1.5e-4,
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "temperature": 0.2,
        "model.head_layers": 3,
        "model.predictor_last_norm": True,
        "model.freeze_patch": True,
        "model.patch": 16,
    }
    for variant, own, smallest in (
        ("r50", resnet, 0.2),
        ("vit_s", vit, 0.08),
        ("vit_b", vit, 0.08),
    ):
        flat = flatten(get(repository, "imagenet_v3", variant))
        expected = both | own
        assert {key: flat[key] for key in expected} == expected
        first, second = flat["views"]
        assert [view[0]["scale"] for view in (first, second)] == [[smallest, 1.0]] * 2
        blur = {"op": "blur", "sigma": [0.1, 2.0]}
        assert blur | {"p": 1.0} in first
        assert blur | {"p": 0.1} in second
        assert {"op": "solarize", "threshold": 128, "p": 0.2} in second


def test_v1_differs_from_v2_as_the_papers_do(repository):
    v1, v2 = (flatten(get(repository, "imagenet", v)) for v in ("v1", "v2"))
    changed = {key: v1[key] for key in v1 if v1[key] != v2[key] and key != "views"}
    assert changed == {
        "name": "imagenet_v1",
        "model.head": "linear",
        "temperature": 0.07,
        "lr_schedule": "step",
    }
    assert v1["lr_drops"] == [0.6, 0.8]
    assert [op["op"] for op in v1["views"][0]][1:] == ["grayscale", "color_jitter", "flip"]


def test_cifar_matches_the_demo(repository):
    flat = flatten(get(repository, "cifar10"))
    expected = {
        "epochs": 200,
        "batch_size": 512,
        "lr": 0.06,
        "lr_batch": 512,
        "lr_update": "epoch_from_1",
        "weight_decay": 5e-4,
        "momentum": 0.99,
        "queue_size": 4096,
        "temperature": 0.1,
        "bn_groups": 8,
        "model.name": "resnet18",
        "model.stem": "small",
        "model.stem_init": "fan_in",
        "model.head": "linear",
        "knn.k": 200,
        "knn.temperature": 0.1,
        "knn.features": "head",
    }
    assert {key: flat[key] for key in expected} == expected
