"""The views of the first images, as a run logs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.data.augment.views import make_views
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import grid, pretrain, view_log
from moco_jax.training.integrity import checksums
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.tiny import tiny_config, tiny_sources


def logged(folder, monkeypatch, config, devices):
    """Runs pretraining; returns its state and what it logged as images."""
    found = []
    monkeypatch.setattr(MetricsLog, "images", lambda self, *what: found.append(what))
    return pretrain.pretrain(config, folder, devices=devices, sources=tiny_sources()), found


@pytest.mark.parametrize("count", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_views_of_the_first_step_are_logged_once_and_change_nothing(
    tmp_path, monkeypatch, count
):
    changes = {"steps": 2, "knn__every_epochs": 0.0}
    devices = jax.devices()[:count]
    plain, none = logged(tmp_path / "a", monkeypatch, tiny_config(**changes), devices)
    config = tiny_config(log_views=True, **changes)
    state, [(step, name, images)] = logged(tmp_path / "b", monkeypatch, config, devices)
    assert none == [] and (step, name) == (0, "views")
    assert checksums.summarize(state).arrays == checksums.summarize(plain).arrays
    # The views that the step drew, from the same seed, step and images.
    layout = make_layout(devices, **config.mesh)
    run = pretrain.build(config, layout, tiny_sources())
    batch = next(run.data.batches(run.order))
    draw = jax.jit(
        lambda arrays, b: make_views(config, layout)(jnp.int32(0), *run.data.images(arrays, b))
    )
    mean, std = (np.asarray(x, np.float32) for x in (config.data.mean, config.data.std))
    gap = grid._GAP
    assert images.shape == (1, 8 * 64 + 7 * gap, 2 * 64 + gap, 3) and images.dtype == np.uint8
    for column, view in enumerate(draw(run.arrays, batch)):
        for row in range(8):
            top, left = row * (64 + gap), column * (64 + gap)
            cell = images[0, top : top + 64 : 8, left : left + 64 : 8]  # each pixel is 8x8
            expected = (np.asarray(view[row]) * std + mean) * 255
            np.testing.assert_allclose(cell, expected, atol=0.51)
    state, again = logged(tmp_path / "b", monkeypatch, config, devices)  # a resumed run
    assert again == [] and int(state.step) == 2


def test_views_that_can_not_be_logged_do_not_stop_a_run(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(view_log, "grid", broken)
    config = tiny_config(steps=1, log_views=True, knn__every_epochs=0.0)
    state, found = logged(tmp_path, monkeypatch, config, jax.devices()[:1])
    assert int(state.step) == 1 and found == []
    warnings = [r.getMessage() for r in caplog.records if "views" in r.getMessage()]
    assert warnings == ["the views are not logged: RuntimeError: no memory"]
