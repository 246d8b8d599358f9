"""Tests which experiments are the arms of the study of pretexts, and that they can be compared."""

import pathlib

import pytest

from configs import digits
from moco_jax.ablate import arms
from moco_jax.training.flat_config import flatten

FILE = str(pathlib.Path(__file__).with_name("experiment.py"))
ROOT = pathlib.Path(__file__).parents[2]
# ml_collections loads a config file by it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_the_default_arms_are_variants_of_the_file():
    assert arms.parse([], "a.py") == (
        ("contrastive", "masked", "both", "masked_then_contrastive", "untrained"),
        {"contrastive": "a.py:v3_vit", "masked": "a.py:mae", "both": "a.py:v3_mae"},
    )


def test_arms_are_chosen_and_given_an_experiment():
    chosen, files = arms.parse(["both=c.py:x", "contrastive"], "a.py:b")
    assert chosen == ("contrastive", "both")
    assert files == {"contrastive": "a.py:b", "masked": "a.py:mae", "both": "c.py:x"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["mae"], "--arms has no arm 'mae'; allowed: contrastive, masked, both, masked_then"),
        (["untrained=a.py"], "untrained takes no experiment"),
        (["both", "both=a.py"], "--arms has an arm twice: both, both"),
    ],
)
def test_a_wrong_arm_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        arms.parse(values, "a.py")


def configs(chosen=arms.ARMS, changes=(), **files):
    return arms.configs(chosen, arms.parse([], FILE)[1] | files, dict(changes), devices=1)[0]


def test_changes_apply_to_each_arm_and_a_new_length_replaces_the_old_one():
    found = configs(changes={"epochs": 2.5, "data.path": "x"})
    assert [c.pretext for c in found.values()] == ["contrastive", "masked", "both"]
    assert {(c.steps, c.epochs, c.data.path) for c in found.values()} == {(None, 2.5, "x")}


@pytest.mark.parametrize(
    ("chosen", "needed"),
    [
        (("both",), ["contrastive", "both"]),
        (("masked_then_contrastive",), ["contrastive", "masked"]),
        (("untrained",), ["contrastive"]),
    ],
)
def test_the_contrastive_arm_is_always_the_measure(chosen, needed):
    assert list(configs(chosen)) == needed


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"both": FILE + ":v3_vit"}, "the arm both needs pretext='both', got 'contrastive'"),
        (
            {"masked": FILE + ":large_batch"},
            "batch_size must be the same in all arms: 32 in contrastive, 64 in masked, 32 in both; "
            "--config.batch_size=",
        ),
        ({"contrastive": FILE + ":deep"}, "model.depth must be the same in all arms: 2 in contr"),
        (
            {"masked": FILE + ":none"},
            r"masked=.*experiment.py:none: the variant 'none' is unknown; .*\nGive the experiment "
            "of each arm: --arms=contrastive=FILE:VARIANT",
        ),
        ({"masked": "nowhere.py"}, "masked=nowhere.py: there is no config file nowhere.py"),
        (
            {"both": str(ROOT / "configs/digits_linear.py")},
            "both=.*: an arm needs task='pretrain', got 'linear'",
        ),
    ],
)
def test_arms_that_can_not_be_compared_are_an_error(files, message):
    with pytest.raises(ValueError, match=message):
        configs(**files)


@pytest.mark.parametrize("task", ["linear", "finetune"])
@pytest.mark.parametrize("name", ["digits.py", "digits.py:v3", "digits_other.py"])
def test_evaluations_are_those_of_the_images(task, name):
    config = digits.get_config()
    config.data.exclude = "masks"
    found = arms.evaluation(None, task, config, str(ROOT / "configs" / name))
    assert (found.name, found.task) == (f"digits_{task}" + "_full" * (task != "linear"), task)
    assert (found.data.exclude, found.baseline) == ("masks", False)
    assert found.data.image_size == 0  # the encoder's


@pytest.mark.parametrize(("task", "key"), [("linear", "feature_norm"), ("finetune", "fresh_norm")])
def test_a_vit_is_evaluated_as_mae_is_unless_an_experiment_is_given(task, key):
    config, file = digits.get_config("v3_vit"), str(ROOT / "configs/digits.py")
    assert arms.evaluation(None, task, config, file)[key]
    given = file.replace(".py", f"_{task}.py")
    assert not arms.evaluation(given, task, config, file)[key]


def test_a_shorter_evaluation_has_a_shorter_warmup(tmp_path):
    file = tmp_path / "warm.py"
    file.write_text(
        "from moco_jax.supervised import config\n"
        "def get_config():\n"
        "    c = config.finetune()\n"
        "    c.epochs, c.warmup_epochs = 100, 5.0\n"
        "    return c\n"
    )
    found = arms.evaluation(str(file), "finetune", digits.get_config(), FILE, epochs=10.0)
    assert (found.epochs, found.warmup_epochs) == (10.0, 0.5)
    flat = flatten(found)
    assert flat["data.source"] == "digits"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "there is no experiment_linear.py beside .*; give --linear=FILE.py:VARIANT"),
        ("none.py", "--linear=none.py: there is no config file none.py"),
        (
            str(ROOT / "configs/digits_finetune.py:full"),
            "--linear=.*: this needs task='linear', got 'finetune'",
        ),
    ],
)
def test_an_absent_evaluation_names_its_flag(value, message):
    with pytest.raises(ValueError, match=message):
        arms.evaluation(value, "linear", digits.get_config(), FILE)
