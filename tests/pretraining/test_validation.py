import logging
import math

import pytest

from moco_jax import config as config_lib
from moco_jax.data.augment import recipes
from moco_jax.pretraining import validation
from moco_jax.training.flat_config import flatten
from tests.tiny import tiny_config

MASKED = {
    "pretext": "masked",
    "model__name": "vit_tiny",
    "model__stem": "patch",
    "model__width": 1.0,
    "data__image_size": 224,
    "data__eval_resize": 256,
}


def problems(devices=8, **changes) -> str:
    with pytest.raises(ValueError) as error:
        validation.check(tiny_config(**changes), devices)
    return str(error.value)


def test_the_tiny_and_the_base_config_are_fine():
    validation.check(tiny_config(), 8)
    base = config_lib.base()
    base.epochs = 1
    validation.check(base, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 100, "bn_groups": 4},
            "must be a multiple of the 8 devices; the nearest multiples are 96 and 104",
        ),
        (
            {"batch_size": 40, "bn_groups": 16},
            "must be a multiple of bn_groups=16; the nearest multiples are 32 and 48",
        ),
        (
            {"queue_size": 100},
            "multiple of the 32 keys of a step; the nearest multiples are 96 and 128",
        ),
        (
            {"symmetric": True, "queue_size": 96},
            "64 keys of a step (two views of each image, symmetric=True)",
        ),
        ({"bn_groups": 32}, "leaves 1 image per group; batch norm needs at least 2"),
        ({"model__name": "resnet5"}, "did you mean 'resnet50'? allowed: resnet10, resnet18"),
        ({"model__head": "conv"}, "allowed: linear, mlp, mlp_bn"),
        ({"model__head_layers": 0}, "model.head_layers=0 must be 1 to 9"),
        ({"model__predictor_layers": -1}, "model.predictor_layers=-1 must be 0 to 9"),
        (
            {"model__predictor_layers": 2, "dictionary": "in_batch", "key_encoder": "shared"},
            "model.predictor_layers=2 needs key_encoder='momentum', got 'shared'",
        ),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
        ({"momentum": 1.5}, "momentum=1.5 must lie between 0 and 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"microbatches": 0}, "microbatches=0 must be a whole number from 1 to 2147483647"),
        ({"log_every": 0}, "log_every=0 must be a whole number from 1 to 2147483647"),
        ({"steps": None}, "set one of epochs and steps; got epochs=None, steps=None"),
        ({"epochs": -3.0}, "epochs=-3.0 must be a number above 0"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"data__mean": (0.5, 0.5)}, "data.mean=[0.5, 0.5] must be three numbers"),
        ({"data__std": (0.5, 0.0, 0.5)}, "data.std=[0.5, 0.0, 0.5] must be above 0"),
        ({"model__width": 0.005}, "model.width=0.005 leaves layers without channels"),
        ({"lr_drops": (60, 80)}, "must be numbers between 0 and 1"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 must be a whole number from 0 to 4294967295"),
        ({"batch_size": 10**400}, "must be a whole number from 1 to 2147483647"),
        ({"data__mean": (10**400, 0, 0)}, "must be three numbers"),
        ({"data__eval_resize": 4}, "must be at least data.image_size=8"),
        ({"pretext": "mask"}, "pretext='mask' is unknown; did you mean 'masked'?"),
        (MASKED | {"mask__block": 0}, "mask.block=0 must be a whole number"),
        (MASKED | {"decoder__heads": 0}, "decoder.heads=0 must be a whole number"),
        (MASKED | {"decoder__depth": 10**6}, "decoder.depth=1000000 must be a whole number"),
        (MASKED | {"model__patch": 0}, "model.patch=0 must be a whole number"),
        (MASKED | {"mask__fraction": 0.995}, "allowed: above 0, to 0.994"),
        (MASKED | {"mask__fraction": 0.0}, "allowed: above 0, to 0.994"),
        (MASKED | {"mask__fraction": math.nan}, "1 problem:\n  - mask.fraction=nan must lie"),
        (MASKED | {"mask__fraction": 2.0}, "1 problem:\n  - mask.fraction=2.0 must lie"),
        (MASKED | {"knn__features": "head"}, "a run without contrast trains no head"),
    ],
)
def test_each_problem_says_what_was_got_and_what_is_allowed(changes, message):
    assert message in problems(**changes)


@pytest.mark.parametrize("pretext", [{"pretext": "masked"}, {"contrastive_weight": 0.0}])
def test_a_run_without_contrast_needs_one_recipe(pretext):
    config = tiny_config(**MASKED | {"pretext": "both"} | pretext)
    config.views = config.views[:1]
    validation.check(config, 8)
    config.views = ()
    with pytest.raises(ValueError, match="views must have a recipe, of the images"):
        validation.check(config, 8)


@pytest.mark.parametrize("fraction", [0.0001, 0.0051, 0.994])
def test_the_fractions_of_the_message_are_allowed(fraction):
    validation.check(tiny_config(**MASKED | {"mask__fraction": fraction}), 8)


def test_all_problems_come_at_once():
    text = problems(momentum=2.0, lr=-1.0, dtype="int8", queue_size=100)
    assert text.startswith("the config has 4 problems:")
    assert "queue_size=100 must be a multiple" in text
    assert "momentum=2.0" in text and "lr=-1.0" in text and "dtype='int8'" in text


def test_a_recipes_problems_are_told():
    config = tiny_config()
    config.views = (config.views[0], ({"op": "random_resized_crop"}, {"op": "blurr"}))
    with pytest.raises(ValueError, match="views\\[1\\].*did you mean 'blur'"):
        validation.check(config, 1)


def test_a_view_may_take_the_crop_of_an_earlier_one():
    query, key = recipes.cmae_query(margin=4), recipes.cmae_key(shift=3)
    config = tiny_config()
    config.views = (query, key)
    validation.check(config, 1)
    config.views = (key, query)
    with pytest.raises(ValueError, match="views\\[0\\]: op 0 .* none, this is the first view"):
        validation.check(config, 1)


def test_unknown_and_missing_keys():
    config = tiny_config()
    with config.unlocked():
        config.momentun = 0.9
        del config.queue_size
    with pytest.raises(ValueError) as error:
        validation.check(config, 1)
    assert "unknown key 'momentun'; did you mean 'momentum'?" in str(error.value)
    assert "the key 'queue_size' is missing" in str(error.value)


def test_one_group_with_a_queue_warns(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        validation.check(tiny_config(bn_groups=1), 1)
    assert "synchronised batch norm" in caplog.text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"model__head_layers": 3}, "model.head_layers=3 has no effect with model.head=mlp"),
        (
            {"model__predictor_last_norm": False},
            "model.predictor_last_norm=False has no effect with model.predictor_layers=0",
        ),
        (
            {"dictionary": "in_batch", "key_encoder": "shared", "momentum_schedule": "cosine"},
            "momentum_schedule=cosine has no effect with key_encoder=shared",
        ),
        ({"lars_trust": 0.1}, "lars_trust=0.1 has no effect with optimizer=sgd"),
        ({"adam_b2": 0.95}, "adam_b2=0.95 has no effect with optimizer=sgd"),
        (
            {"optimizer": "adamw", "sgd_momentum": 0.5},
            "sgd_momentum=0.5 has no effect with optimizer=adamw",
        ),
        ({"bank__negatives": 8}, "bank.negatives=8 has no effect with dictionary=queue"),
        ({"model__head": "mlp_bn", "model__head_layers": 3}, ""),
        ({"model__predictor_layers": 2, "model__predictor_last_norm": False}, ""),
        ({"optimizer": "adamw", "adam_b2": 0.95}, ""),
        ({"optimizer": "lars", "lars_trust": 0.1, "sgd_momentum": 0.5}, ""),
        ({"momentum_schedule": "cosine"}, ""),
    ],
)
def test_a_value_without_effect_warns(caplog, changes, warning):
    with caplog.at_level(logging.WARNING, logger="absl"):
        validation.check(tiny_config(**changes), 1)
    assert [record.getMessage() for record in caplog.records] == ([warning] if warning else [])


@pytest.mark.parametrize("head", ["mlp", "mlp_bn"])
def test_a_network_without_batch_norm_has_no_groups_to_warn_of(caplog, head):
    vit = {"model__name": "vit_tiny", "model__stem": "patch", "model__patch": 4}
    config = tiny_config(**vit, model__width=1.0, model__head=head, bn_groups=1)
    with caplog.at_level(logging.WARNING, logger="absl"):
        validation.check(config, 1)
    assert ("synchronised batch norm" in caplog.text) == (head == "mlp_bn")


@pytest.mark.parametrize(
    ("size", "resize", "warns"),
    [(64, 256, True), (64, 97, True), (64, 96, False), (224, 256, False), (8, 8, False)],
)
def test_an_evaluation_of_a_small_central_part_warns(caplog, size, resize, warns):
    config = tiny_config(data__image_size=size, data__eval_resize=resize)
    with caplog.at_level(logging.WARNING, logger="absl"):
        validation.check(config, 1, warns=False)
        assert caplog.text == ""
        validation.check(config, 1)
    assert warns == (
        f"data.eval_resize={resize} is large for data.image_size={size}" in caplog.text
    )
    assert warns == ("Set --config.data.eval_resize=64." in caplog.text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 40, "queue_size": 120, "microbatches": 3},
            "batch_size=40 must be a multiple of 6, microbatches=3 on 2 devices; the nearest "
            "multiples are 36 and 42",
        ),
        (
            {"microbatches": 4, "bn_groups": 2},
            "microbatches=4 must divide bn_groups=2, so that each part has whole batch-norm "
            "groups; allowed: --config.microbatches=1 or 2, or another --config.bn_groups: the "
            "nearest multiple is 4",
        ),
    ],
)
def test_parts_that_do_not_fit_the_batch_are_refused(changes, message):
    assert message in problems(2, **changes)


@pytest.mark.parametrize("changes", [{"head": "mlp_bn"}, {"predictor_layers": 1}, {"stem": "conv"}])
def test_groups_matter_only_with_batch_norm(changes):
    vit = {"name": "vit_tiny", "stem": "patch", "patch": 8, "predictor_last_norm": True}
    sizes = {"batch_size": 8, "queue_size": 8, "bn_groups": 8}
    validation.check(tiny_config(**sizes, **of_model(vit)), 1)
    normalised = of_model(vit | changes)
    assert "bn_groups=8 leaves 1 image per group" in problems(1, **sizes, **normalised)


def of_model(keys: dict) -> dict:
    return {f"model__{key}": value for key, value in keys.items()} | {"model__width": 1.0}


def test_a_vit_without_batch_norm_takes_parts_of_any_number():
    vit = {"model__name": "vit_tiny", "model__stem": "patch", "model__patch": 4}
    config = tiny_config(**vit, model__width=1.0, bn_groups=1, microbatches=4)
    validation.check(config, 2, warns=False)


@pytest.mark.parametrize(
    "key", [key for key, value in flatten(config_lib.base()).items() if type(value) is int]
)
def test_a_number_that_no_array_has_is_refused(key):
    assert f"{key}={2**63}" in problems(**{key.replace(".", "__"): 2**63})
