"""Checkpoints: what a config may change, and checkpoints of earlier versions."""

import json
import logging
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from moco_jax.pretraining.pretrain import checkpoint_kind
from moco_jax.supervised.kinds import KINDS
from moco_jax.training.checkpoints import Checkpoints
from moco_jax.training.comparison import Kind, differences
from moco_jax.training.flat_config import flatten, unflatten
from moco_jax.training.integrity.checkpoint_files import (
    Damaged,
    read_about,
    read_arrays,
    sealed,
)
from tests.supervised.tiny import task_config
from tests.tiny import tiny_config

STATE = {
    "params": {"backbone": {"kernel": jnp.arange(6, dtype=jnp.float32)}},
    "batch_stats": {"backbone": {"mean": jnp.asarray([1.0, 2.0])}},
    "opt_state": jnp.zeros(3, jnp.float32),
}
# Keys of version 0.1.0 -> keys of today.
OLD_KEYS = {"data.max_bad_fraction": "data.max_bad_share", "label_fraction": "label_share"}


def checkpoints(folder: pathlib.Path, config: ConfigDict, kind: Kind) -> Checkpoints:
    return Checkpoints(folder, 2, flatten(config), kind)


def save(folder: pathlib.Path, config: ConfigDict, kind: Kind, images: int = 96) -> pathlib.Path:
    """Saves step 2; returns the file that describes the checkpoint."""
    with checkpoints(folder, config, kind) as saved:
        saved.identify(images)
        saved.save(2, STATE)
        saved.wait()
    return folder / "2" / "about" / "metadata"


def make_old(about: pathlib.Path, at_least_one: bool = True) -> None:
    """Gives the description of a checkpoint the keys of version 0.1.0."""
    saved = json.loads(about.read_text())
    for key in ("crc", "arrays", "contents", "since"):
        del saved[key]
    saved["pictures"] = saved.pop("images")
    saved["recipe"] = {OLD_KEYS.get(key, key): x for key, x in saved["recipe"].items()}
    assert saved["recipe"].keys() & OLD_KEYS.values() or not at_least_one
    about.write_text(json.dumps(saved))


def test_older_recipe_without_a_key_has_the_value_of_the_base_config(tmp_path):
    config = tiny_config()
    kind = checkpoint_kind(config)
    about = save(tmp_path, config, kind)
    saved = json.loads(about.read_text())
    for key in ("key_encoder", "bank.loss"):
        del saved["recipe"][key]
    about.write_text(json.dumps(sealed(saved)))
    with checkpoints(tmp_path, config, kind) as same:
        same.check()
    with (
        checkpoints(tmp_path, tiny_config(key_encoder="none"), kind) as other,
        pytest.raises(ValueError, match="key_encoder: 'momentum' in the checkpoint, 'none' now"),
    ):
        other.check()


def test_run_of_an_earlier_version_continues(tmp_path, caplog):
    config = tiny_config(data__max_bad_fraction=0.5)
    kind = checkpoint_kind(config)
    make_old(save(tmp_path, config, kind))
    with caplog.at_level(logging.WARNING), checkpoints(tmp_path, config, kind) as same:
        same.check()
        same.identify(96)
        np.testing.assert_array_equal(same.restore(STATE)["params"]["backbone"]["kernel"], range(6))
    assert not caplog.records
    with caplog.at_level(logging.WARNING), checkpoints(tmp_path, tiny_config(), kind) as other:
        other.check()
        other.identify(95)
    changed, images = (record.getMessage() for record in caplog.records)
    assert "data.max_bad_fraction: 0.5 in the checkpoint, 0.01 now" in changed
    assert "saw 96 images, now there are 95" in images


def test_images_of_a_memory_bank_of_an_earlier_version_are_compared(tmp_path):
    config = tiny_config(dictionary="memory_bank", key_encoder="none")
    kind = checkpoint_kind(config)
    make_old(save(tmp_path, config, kind))
    with (
        checkpoints(tmp_path, config, kind) as bank,
        pytest.raises(ValueError, match="a slot for each of 96 images, now there are 95"),
    ):
        bank.check()
        bank.identify(95)


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_label_fraction_of_an_earlier_version_is_compared(task, tmp_path):
    config = task_config(task, "x", label_fraction=0.1)
    make_old(save(tmp_path, config, KINDS[task]))
    with checkpoints(tmp_path, config, KINDS[task]) as same:
        same.check()
    with (
        checkpoints(tmp_path, task_config(task, "x"), KINDS[task]) as other,
        pytest.raises(ValueError, match=r"label_fraction: 0.1 in the checkpoint, 1.0 now"),
    ):
        other.check()


def test_encoder_of_an_earlier_version_is_read(tmp_path):
    config = tiny_config(data__max_bad_fraction=0.5)
    kind = checkpoint_kind(config)
    make_old(save(tmp_path, config, kind))
    about = read_about(tmp_path / "2")
    assert about["images"] == 96 and about["recipe"] == flatten(config)
    variables = read_arrays(tmp_path / "2", about, ("params", "batch_stats"))
    assert variables.keys() == {"params", "batch_stats"}
    np.testing.assert_array_equal(variables["params"]["backbone"]["kernel"], range(6))


def test_flat_config_of_an_earlier_version_is_read():
    config = tiny_config(data__max_bad_fraction=0.5)
    old = {OLD_KEYS.get(key, key): value for key, value in flatten(config).items()}
    assert flatten(unflatten(old, tiny_config())) == flatten(config)


def test_errors_name_the_checkpoint(tmp_path):
    config = tiny_config()
    about = save(tmp_path, config, checkpoint_kind(config))
    with (
        checkpoints(tmp_path, config, KINDS["linear"]) as other,
        pytest.raises(ValueError, match="of kind 'moco_jax.pretrain', not 'moco_jax.linear'"),
    ):
        other.check()
    about.write_text("{")
    with pytest.raises(Damaged, match="about/metadata can't be read: "):
        read_about(tmp_path / "2")


ODD = [None, True, -1, 2**70, 1.5, float("nan"), "", "text", [], [1], {}, {"a": [1]}]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "key",
    [
        "kind",
        "recipe",
        "images",
        "step",
        "contents",
        "since",
        "arrays",
        "crc",
        "data.path",
        "views",
    ],
)
def test_a_tampered_description_is_one_clear_error(tmp_path, caplog, key, old):
    """`old`: as of an earlier version, without checksums."""
    config = tiny_config()
    kind = checkpoint_kind(config)
    about = save(tmp_path, config, kind)
    if old:
        make_old(about, at_least_one=False)
    before = json.loads(about.read_text())
    for value in ODD:
        holder = dict(before)
        if key in before["recipe"]:
            holder["recipe"] = before["recipe"] | {key: value}
        else:
            holder["pictures" if old and key == "images" else key] = value
        about.write_text(json.dumps(holder))
        with checkpoints(tmp_path, config, kind) as opened:
            try:
                opened.check()
                opened.identify(96)
            except ValueError as error:
                assert str(tmp_path) in str(error)
            else:
                assert old or holder == before
                opened.restore(STATE)
        about.write_text(json.dumps(before))


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ({"steps": 9, "epochs": None}, {"steps": 9, "epochs": 5.0}, []),
        ({"steps": 9, "epochs": 3.0}, {"steps": 20, "epochs": 5.0}, ["steps"]),
        ({"steps": None, "epochs": 3.0}, {"steps": 20, "epochs": None}, ["steps"]),
        ({"steps": 9, "epochs": None}, {"steps": None, "epochs": 5.0}, ["epochs"]),
        ({"steps": 9, "epochs": 5.0}, {"steps": None, "epochs": 5.0}, ["steps"]),
        ({"steps": None, "epochs": 3.0}, {"steps": None, "epochs": 5.0}, ["epochs"]),
    ],
)
def test_only_the_key_that_is_the_length_of_the_run_counts(old, new, counts):
    assert list(differences(old, new)) == counts
