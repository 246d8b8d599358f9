"""Numbers above the number of images: a warning or a line with the number that is used."""

import re

import pytest

from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import few_images, validation
from moco_jax.pretraining.run import build
from tests.tiny import tiny_config, tiny_sources


@pytest.mark.parametrize(
    ("images", "changes", "most"),
    [
        (96, {"queue_size": 128}, 96),
        (100, {"queue_size": 4096}, 96),
        (96, {"queue_size": 256, "symmetric": True}, 192),
        (96, {"queue_size": 96}, None),
        (96, {"queue_size": 192, "symmetric": True}, None),
    ],
)
def test_a_queue_longer_than_an_epoch_is_a_warning_with_the_largest_value(images, changes, most):
    config = tiny_config(**changes)
    found = list(few_images.warnings(config, images, 8))
    if most is None:
        assert found == []
        return
    [warning] = found
    assert f"queue_size={config.queue_size} is more than the {most} keys of an epoch" in warning
    assert warning.endswith(f"--config.queue_size={most}")
    config.queue_size = most
    validation.check(config, 8)
    assert list(few_images.warnings(config, images, 8)) == []


@pytest.mark.parametrize("loss", ["info_nce", "nce"])
def test_more_negatives_than_images_are_a_warning(loss):
    config = tiny_config(
        dictionary="memory_bank", key_encoder="none", bank__negatives=4096, bank__loss=loss
    )
    config.views = config.views[:1]
    [warning] = few_images.warnings(config, 100, 8)
    found = re.search(r"At most (\d+) can be different: --config.bank.negatives=(\d+)$", warning)
    assert found and found[1] == found[2]
    most = int(found[2])
    assert most == (64 if loss == "info_nce" else 96)
    config.bank.negatives = most
    validation.check(config, 8)
    assert list(few_images.warnings(config, 100, 8)) == []


def test_a_run_prints_each_number_that_is_smaller_than_asked():
    config = tiny_config(queue_size=4096, knn__k=200, knn__bank=60, knn__queries=20)
    run = build(config, make_layout(), tiny_sources())
    warning, *lines = run.notes
    assert warning.startswith("warning: queue_size=4096 is more than the 96 keys of an epoch")
    assert lines == [
        "kNN: 60 of the 96 training images are neighbours (knn.bank)",
        "kNN: 20 of the 32 test images are classified (knn.queries)",
    ]
    assert build(tiny_config(queue_size=96), make_layout(), tiny_sources()).notes == ()


def test_too_few_images_come_before_advice_about_the_config(caplog):
    config, layout = tiny_config(bn_groups=1), make_layout()
    with pytest.raises(ValueError, match="fewer than batch_size="):
        build(config, layout, tiny_sources(4))
    assert caplog.text == ""
    build(config, layout, tiny_sources())
    assert "bn_groups=1 is synchronised batch norm" in caplog.text
