"""The command that lists config keys: every key has a meaning, in one place."""

import types

import pytest

from moco_jax import keys
from tests.conftest import run_command
from tests.in_process import run_all


@pytest.mark.parametrize("task", keys.BASES)
def test_every_key_of_every_task_has_a_meaning(task):
    listed = keys.keys(keys.BASES[task]())
    assert [key.name for key in listed if len(key.meaning) < 3] == []
    assert all(key.value == key.default for key in listed)


def test_a_key_without_own_comment_has_the_meaning_of_pretraining():
    meanings = {key.name: key.meaning for key in keys.keys(keys.BASES["linear"]())}
    assert meanings["data.path"].startswith("folder, archive, shards")
    assert meanings["model.name"].startswith("see moco_jax/models/resnet.py")
    assert meanings["data.mean"] == "of pixels in 0..1; (): the encoder's"
    segment = {key.name: key.meaning for key in keys.keys(keys.BASES["segment"]())}
    assert segment["batch_size"] == "crops" and segment["data.masks"] == "folder of the masks"


def test_allowed_values_are_those_of_the_rules():
    allowed = {key.name: key.allowed for key in keys.keys(keys.BASES["pretrain"]())}
    assert allowed["model.head"] == "linear, mlp, mlp_bn"
    assert allowed["momentum"] == "between 0 and 1"
    assert allowed["queue_size"] == "1 or more"
    assert allowed["name"] == ""


def test_comments_above_and_behind_a_key_are_its_meaning(tmp_path, monkeypatch):
    module = types.ModuleType("module")
    source = (
        "def base():\n"
        "    c = ConfigDict()\n"
        "    # One value\n"
        "    # or several:\n"
        "    c.lr = (30.0,)  # a head for each\n"
        "\n"
        "    # A remark that belongs to no key.\n"
        "\n"
        "    c.views = (\n"
        "        1,\n"
        "    )  # two\n"
        "    c.name = 'a # b'\n"
        "    c.data = _data()\n"
        "    return c\n"
        "def _data():\n"
        "    c = ConfigDict()\n"
        "    c.path = ''  # a folder\n"
        "    return c\n"
    )
    monkeypatch.setattr(keys.inspect, "getsource", lambda _: source)
    assert keys._explained(module, "base") == {
        "lr": "One value or several: a head for each",
        "views": "two",
        "data.path": "a folder",
    }


def test_keys_are_searched_by_name_and_meaning(repository):
    done = run_command(repository, "moco_jax.keys", "--match=neighbours", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "knn.k=200" in lines and lines[lines.index("knn.k=200") + 1].startswith("    neighbours")
    assert all(len(line) <= 80 for line in lines)


def test_values_of_an_experiment_stand_beside_the_defaults(repository, capsys):
    done = run_command(
        repository, "moco_jax.keys", "--config=configs/digits.py", "--match=queue_size"
    )
    assert done.stdout.splitlines()[0] == "queue_size=512  (default 65536)", done.stderr


def test_what_cant_be_listed_is_one_message(repository):
    cases = {
        ("--task=none",): "--task=none: value should be one of <pretrain|linear|finetune|segment>",
        ("--match=nothing",): "--match=nothing: no key of task=pretrain has this text",
        ("--task=linear", "--config=configs/digits.py"): "--task and --config can't be combined",
    }
    found = run_all(repository, "moco_jax.keys", list(cases), repository)
    for (code, printed), message in zip(found, cases.values(), strict=True):
        assert code == 2 and message in printed
