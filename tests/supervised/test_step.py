"""The supervised step against plain NumPy, and which gradients it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models import convolution
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel.mesh import make_layout
from moco_jax.supervised.start import Start
from moco_jax.supervised.step import factors, init_state, make_step
from moco_jax.training.optimizers import make_optimizer
from tests.supervised.tiny import FAST, encoder_variables, task_config
from tests.tiny import tiny_config

CLASSES, BATCH = 4, 16
SCHEDULE = (1.0, 1.0, 0.1)  # factor of the learning rate at each step


def prepare(task: str, **changes):
    config = task_config(task, "x", batch_size=BATCH, lr_batch=32, bn_groups=2, **changes)
    variables = {name: tree["backbone"] for name, tree in encoder_variables().items()}
    start = Start(
        config, make_encoder(tiny_config(bn_groups=2)).backbone, **variables, notes=(), content=None
    )
    layout = make_layout(jax.devices()[:1])
    optimizer = make_optimizer(
        config, lambda at: jnp.asarray(SCHEDULE)[at], lambda params: factors(config, params)
    )
    init = functools.partial(init_state, config, start, CLASSES, optimizer)
    state = jax.jit(init, compiler_options=FAST)(variables)
    return state, make_step(config, start, optimizer, layout), start


def batches():
    rng = np.random.default_rng(1)
    for _ in SCHEDULE:
        labels = rng.integers(0, CLASSES, BATCH)
        images = rng.normal(size=(BATCH, 8, 8, 3)) + labels[:, None, None, None]
        yield images.astype(np.float32), np.eye(CLASSES, dtype=np.float32)[labels]


def test_heads_equal_softmax_regression_in_numpy():
    """SGD with momentum .9; a batch of 16 images with lr_batch=32 halves the learning rates."""
    state, step, start = prepare("linear", lr=(0.5, 8.0))
    kernels = np.asarray(state.params["head"]["kernel"], np.float64)
    assert np.abs(kernels).max() < 0.05 and abs(kernels[0].std() - 0.01) < 0.001
    np.testing.assert_array_equal(kernels[0], kernels[1])
    heads = [(kernel, np.zeros(CLASSES)) for kernel in kernels]
    speeds = [(np.zeros_like(kernel), np.zeros(CLASSES)) for kernel in kernels]
    run = jax.jit(step)
    encode = jax.jit(functools.partial(start.backbone.apply, train=False))
    for rate, (images, targets) in zip(SCHEDULE, batches(), strict=True):
        features = encode({"params": start.params, "batch_stats": start.batch_stats}, images)
        features, losses = np.asarray(features, np.float64), []
        for i, lr in enumerate((0.25, 4.0)):
            kernel, bias = heads[i]
            scores = np.exp(features @ kernel + bias)
            p = scores / scores.sum(axis=1, keepdims=True)
            losses.append(-np.log((p * targets).sum(axis=1)).mean())
            slope = (p - targets) / BATCH
            speeds[i] = (0.9 * speeds[i][0] + features.T @ slope, 0.9 * speeds[i][1] + slope.sum(0))
            heads[i] = (kernel - lr * rate * speeds[i][0], bias - lr * rate * speeds[i][1])
        state, metrics = run(state, images, targets)
        assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    for i, (kernel, bias) in enumerate(heads):
        np.testing.assert_allclose(state.params["head"]["kernel"][i], kernel, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state.params["head"]["bias"][i], bias, rtol=1e-3, atol=1e-5)


def test_frozen_encoder_has_no_backward_pass():
    """A layer has one convolution; each gradient, of kernel and input, is one more."""
    convolutions = {}
    images, targets = next(batches())
    for task in ("linear", "finetune"):
        state, step, start = prepare(task)
        with convolution.lax_only():
            text = str(jax.make_jaxpr(step)(state, images, targets))
        convolutions[task] = text.count("conv_general_dilated[")
    layers = sum(x.ndim == 4 for x in jax.tree.leaves(start.params))
    assert convolutions["linear"] == layers
    assert convolutions["finetune"] == 3 * layers - 1  # no gradient of the images


def test_fine_tuning_has_its_own_head_lr_and_an_average():
    (images, targets), moved = next(batches()), {}
    for head_lr in (1.0, 10.0):
        state, step, _ = prepare("finetune", head_lr=head_lr, ema=0.75)
        after, _ = jax.jit(step)(state, images, targets)
        moved[head_lr] = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, state.params)
        average, now, before = (
            tree["head"]["kernel"]
            for tree in (after.averaged["params"], after.params, state.params)
        )
        np.testing.assert_allclose(average, 0.75 * before + 0.25 * now, atol=1e-6)
        assert after.evaluated()["head"] is after.averaged["params"]["head"]
    ten, one = moved[10.0], moved[1.0]
    np.testing.assert_allclose(
        ten["head"]["kernel"], 10 * one["head"]["kernel"], rtol=1e-2, atol=1e-6
    )
    stem = [tree["backbone"]["stem_conv"]["kernel"] for tree in (ten, one)]
    np.testing.assert_allclose(stem[0], stem[1], rtol=1e-3, atol=1e-7)


def test_batch_norm_is_in_training_mode_in_fine_tuning_only():
    images, targets = next(batches())
    for task, changes in (("linear", False), ("finetune", True)):
        state, step, _ = prepare(task)
        after, _ = jax.jit(step)(state, images, targets)
        same = jax.tree.map(np.array_equal, after.batch_stats, state.batch_stats)
        assert all(jax.tree.leaves(same)) is not changes
