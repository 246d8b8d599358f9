"""The config keys of loggers, and the ids of their runs."""

import importlib.util
import json

import pytest

from moco_jax import config as config_lib
from moco_jax.pretraining import validation
from moco_jax.segmentation import config as segmentation
from moco_jax.supervised import config as supervised
from moco_jax.training import checks
from moco_jax.training.comparison import differences
from moco_jax.training.outputs.sinks import loggers
from moco_jax.training.outputs.sinks.settings import Settings, id_file, read_id, write_id


@pytest.mark.parametrize(
    "base", [config_lib.base, supervised.linear, supervised.finetune, segmentation.base]
)
def test_every_task_has_the_keys_and_they_are_off(base):
    config = base()
    assert [config[key] for key in loggers.TITLES] == ["", ""]
    assert set(loggers.TITLES) <= checks.COMMON_RULES.keys()


@pytest.mark.parametrize("key", ["wandb", "mlflow"])
def test_an_absent_library_is_named_with_its_command(monkeypatch, key):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rule = checks.COMMON_RULES[key]
    assert rule("") == ""
    assert rule("digits") == f"needs the library {key}: pip install 'moco-jax[{key}]'"


def test_values_of_the_keys(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    rule = checks.COMMON_RULES["mlflow"]
    for value in ("folder", "http://host:5000", "sqlite:///a.db", "file:///home/me@here/runs"):
        assert rule(value) == ""
    assert "must be a string" in rule(3)


@pytest.mark.parametrize(
    "user", ["me:secret", "secret", ":secret", "me:sec/secret", "me:sec@secret", "me:'secret"]
)
@pytest.mark.parametrize(("key", "variable"), [("mlflow", "_PASSWORD"), ("wandb", "WANDB_API_KEY")])
def test_a_password_or_token_is_refused_and_not_printed(key, variable, user):
    config = config_lib.base()
    config.update({key: f"https://{user}@host:5000/path"})
    with pytest.raises(ValueError, match=f"{key}=.*must have no user") as error:
        validation.check(config, 1)
    message = str(error.value)
    assert "secret" not in message and "https://***@host:5000/path" in message
    assert variable in message


def test_loggers_do_not_count_as_a_changed_config():
    old = {"wandb": "", "lr": 0.1}
    assert differences(old, {"wandb": "a", "mlflow": "b", "log_views": False, "lr": 0.1}) == {}
    assert differences(old, {"wandb": "a", "lr": 0.2}) == {"lr": (0.1, 0.2)}


def settings(folder, **changes) -> Settings:
    values = {"logger": "mlflow", "target": "a", "folder": folder, "name": "n", "experiment": "e"}
    return Settings(**(values | {"start_step": 4, "config": {}} | changes))


def test_a_resumed_run_continues_its_run(tmp_path):
    write_id(settings(tmp_path), "abc-1")
    assert read_id(settings(tmp_path)) == "abc-1"
    for other in ({"start_step": 0}, {"target": "b"}, {"logger": "wandb"}):
        assert read_id(settings(tmp_path, **other)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"2",
        b"null",
        b"[" * 10_000,
        b'{"target": "a"}',
        b'{"target": "a", "run": 3}',
        b'{"target": "a", "run": "../x"}',
        b'{"target": "a", "run": "' + b"x" * 65 + b'"}',
        json.dumps({"target": "a", "run": "x\n"}).encode(),
    ],
)
def test_a_damaged_id_starts_a_new_run(tmp_path, content):
    id_file(settings(tmp_path)).write_bytes(content)
    assert read_id(settings(tmp_path)) is None
