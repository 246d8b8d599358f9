"""The batch that the error of a small data set names is valid and as large as it can be."""

import itertools
import re

import pytest

from moco_jax.pretraining import few_images, validation
from moco_jax.training.batch_size import largest_batch, power_of_two, remedy
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("images", "groups", "devices", "expected"),
    [
        (42, 8, 1, (40, 8)),
        (15, 8, 1, (14, 7)),
        (42, 8, 8, (40, 8)),
        (9, 8, 8, (8, 4)),
        (2, 8, 1, (2, 1)),
        (1, 8, 1, None),
        (7, 8, 8, None),
        (50, 1, 4, (48, 1)),
    ],
)
def test_largest_batch(images, groups, devices, expected):
    assert largest_batch(images, groups, devices) == expected


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_flags_of_the_error_are_valid(devices):
    """For every small number of images: the config with the named flags passes and warns not."""
    choices = itertools.product(
        range(1, 70), (1, 3, 8, 16), (False, True), ("queue", "memory_bank")
    )
    for images, groups, symmetric, dictionary in choices:
        bank = dictionary == "memory_bank"
        config = tiny_config(
            batch_size=2400, bn_groups=groups, queue_size=4800, dictionary=dictionary,
            symmetric=symmetric and not bank, bank__negatives=devices,
        )  # fmt: skip
        if bank:
            config.key_encoder, config.views = "none", config.views[:1]
        with pytest.raises(ValueError, match=f"here has {images} images, fewer than") as error:
            few_images.check_batch(config, "here", images, devices)
        flags = dict(re.findall(r"--config\.([\w.]+)=(\d+)", str(error.value)))
        if not flags:
            assert f"needs at least {max(2, devices) + bank}" in str(error.value)
            assert images < max(2, devices) + bank
            continue
        config.update_from_flattened_dict({key: int(value) for key, value in flags.items()})
        validation.check(config, devices)
        few_images.check_batch(config, "here", images, devices)
        if not bank:
            assert list(few_images.warnings(config, images, devices)) == []


def test_a_bank_needs_an_image_outside_the_batch():
    config = tiny_config(dictionary="memory_bank", batch_size=32, bn_groups=8)
    with pytest.raises(ValueError, match="32 images, as many as batch_size.*batch_size=24$"):
        few_images.check_batch(config, "here", 32, 1)
    few_images.check_batch(config, "here", 33, 1)


def test_a_valid_queue_is_not_named():
    assert remedy(42, 8, 1, queue=40) == "give more images, or set --config.batch_size=40"
    assert remedy(42, 8, 1, queue=4096).endswith("--config.batch_size=40 --config.queue_size=40")


@pytest.mark.parametrize(
    ("value", "least", "expected"),
    [(0, 1, 1), (1, 1, 1), (7, 1, 4), (8, 1, 8), (9, 8, 8), (7, 8, 8), (1000, 8, 512)],
)
def test_power_of_two(value, least, expected):
    assert power_of_two(value, least) == expected
