import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cifar10
from moco_jax.training.optimizers import make_optimizer, make_schedule
from tests.tiny import tiny_config


def lrs(steps, per_epoch, **changes):
    changes = {"steps": None, "lr_schedule": "cosine"} | changes
    schedule = make_schedule(tiny_config(**changes), per_epoch)
    return [float(schedule(s)) for s in steps]


def test_cosine_moves_once_an_epoch():
    got = lrs([0, 9, 10, 1000, 1999], 10, epochs=200, lr=0.03)
    expected = [0.03, 0.03, 0.03 * (1 + np.cos(np.pi / 200)) / 2, 0.015]
    np.testing.assert_allclose(got[:4], expected, rtol=1e-5)
    assert got[4] == pytest.approx(0.03 * (1 + np.cos(np.pi * 199 / 200)) / 2, rel=1e-3)


def test_the_cifar_demo_counts_epochs_from_1():
    """Its loop is `for epoch in range(1, 201)`, and its rate .06 (1 + cos(pi epoch / 200)) / 2."""
    schedule = make_schedule(cifar10.get_config(), 97)
    got = [float(schedule(step)) for step in (0, 96, 97, 100 * 97, 199 * 97, 200 * 97 - 1)]
    expected = [0.03 * (1 + np.cos(np.pi * epoch / 200)) for epoch in (1, 1, 2, 101, 200, 200)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_cosine_moves_every_step():
    got = lrs([0, 1, 50, 100], 10, epochs=10, lr=1.0, lr_update="step")
    np.testing.assert_allclose(got, [1, (1 + np.cos(np.pi / 100)) / 2, 0.5, 0], atol=1e-6)


def test_v1_drops_at_epochs_120_and_160():
    steps = [0, 119 * 7 + 6, 120 * 7, 159 * 7 + 6, 160 * 7, 199 * 7]
    got = lrs(steps, 7, epochs=200, lr=0.03, lr_schedule="step")
    np.testing.assert_allclose(got, [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003], rtol=1e-5)


def test_warm_up_rises_every_step_and_the_rate_scales_with_the_batch():
    got = lrs([0, 5, 10, 20], 10, epochs=3, warmup_epochs=2, lr=0.5, lr_batch=16)
    # Batch 32: twice .5. The cosine starts where the warm-up ends.
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 1.0], atol=1e-6)


def test_sgd_is_torchs():
    """Two steps worked by hand: g' = g + wd p; v = m v + g'; p = p - lr v."""
    config = tiny_config(sgd_momentum=0.9, weight_decay=0.1)
    optimizer = make_optimizer(config, lambda step: jnp.where(step < 1, 0.5, 0.25))
    params = {"w": jnp.array(2.0)}
    state = optimizer.init(params)
    for gradient in (1.0, 3.0):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    # Step 1: v = 1.2, p = 1.4. Step 2: v = 1.08 + 3.14 = 4.22, p = 1.4 - 1.055.
    assert float(params["w"]) == pytest.approx(0.345, rel=1e-6)
