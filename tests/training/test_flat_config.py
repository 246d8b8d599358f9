"""Recipes of earlier versions keep their meaning."""

from moco_jax.segmentation.config import base as segmentation
from moco_jax.training.flat_config import flatten, unflatten, with_current_keys
from tests.tiny import tiny_config


def test_a_recipe_from_before_exif_orientation_did_not_turn_images():
    now = flatten(tiny_config())
    assert now["data.exif_orientation"]
    old = {key: value for key, value in now.items() if key != "data.exif_orientation"}
    assert with_current_keys(old) == old | {"data.exif_orientation": False}
    assert not unflatten(old, tiny_config()).data.exif_orientation
    assert unflatten(now, tiny_config()).data.exif_orientation


def test_a_recipe_without_the_keys_of_decoding_gets_none():
    recipe = flatten(segmentation())
    assert with_current_keys(recipe) == recipe
