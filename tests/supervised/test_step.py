"""The supervised step against plain NumPy, and which gradients it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.encoder import make_encoder
from moco_jax.models.layers import convolution
from moco_jax.parallel.mesh import make_layout
from moco_jax.supervised.run import make_updates
from moco_jax.supervised.start import Start
from moco_jax.supervised.step import decayed, factors, init_state, make_step, normalized
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
        config,
        lambda at: jnp.asarray(SCHEDULE)[at],
        lambda params: factors(config, params, start.backbone.blocks),
        decayed=None if task == "linear" or config.decay_all else decayed,
        stacked=task == "linear",
    )
    init = functools.partial(init_state, config, start, CLASSES, optimizer)
    state = jax.jit(init, compiler_options=FAST)(variables)
    return state, make_step(config, start, optimizer, layout), start


def moved_by(state, step):
    """Returns {path: (before, after)} of the parameters for one step."""
    before = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
    state, _ = jax.jit(step)(state, *next(batches()))
    after = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in before]
    return dict(zip(names, ((a[1], b[1]) for a, b in zip(before, after, strict=True)), strict=True))


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


def test_lars_on_normalised_features_equals_maes_protocol_in_numpy():
    """The trust ratio is that of each head's kernel; biases have neither ratio nor decay."""
    changes = {"optimizer": "lars", "lars_trust": 0.1, "weight_decay": 0.3, "feature_norm": True}
    state, step, start = prepare("linear", lr=(0.5, 8.0), **changes)
    heads = [(kernel, np.zeros(CLASSES)) for kernel in np.asarray(state.params["head"]["kernel"])]
    speeds = [(np.zeros_like(kernel), np.zeros(CLASSES)) for kernel, _ in heads]
    mean, var = np.zeros(start.backbone.features), np.ones(start.backbone.features)
    run = jax.jit(step)
    encode = jax.jit(functools.partial(start.backbone.apply, train=False))
    for rate, (images, targets) in zip(SCHEDULE, batches(), strict=True):
        features = encode({"params": start.params, "batch_stats": start.batch_stats}, images)
        parts = np.split(np.asarray(features, np.float64), 2)  # groups of batch norm
        mean = 0.9 * mean + 0.1 * np.mean([part.mean(0) for part in parts], axis=0)
        var = 0.9 * var + 0.1 * np.mean([part.var(0, ddof=1) for part in parts], axis=0)
        parts = [(part - part.mean(0)) / np.sqrt(part.var(0) + 1e-6) for part in parts]
        features, losses = np.concatenate(parts), []
        for i, lr in enumerate((0.25, 4.0)):
            kernel, bias = heads[i]
            scores = np.exp(features @ kernel + bias)
            p = scores / scores.sum(axis=1, keepdims=True)
            losses.append(-np.log((p * targets).sum(axis=1)).mean())
            slope = (p - targets) / BATCH
            gradient = features.T @ slope + 0.3 * kernel
            gradient *= 0.1 * np.linalg.norm(kernel) / np.linalg.norm(gradient)
            speeds[i] = (0.9 * speeds[i][0] + gradient, 0.9 * speeds[i][1] + slope.sum(0))
            heads[i] = (kernel - lr * rate * speeds[i][0], bias - lr * rate * speeds[i][1])
        state, metrics = run(state, images, targets)
        assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    for i, (kernel, bias) in enumerate(heads):
        np.testing.assert_allclose(state.params["head"]["kernel"][i], kernel, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state.params["head"]["bias"][i], bias, rtol=1e-3, atol=1e-5)
    stats = state.evaluated()["feature_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-4, atol=1e-6)
    x = jnp.asarray([mean + 2 * np.sqrt(var)], jnp.float32)
    np.testing.assert_allclose(normalized(stats, x)[0], 2, rtol=1e-2)


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


BLOCKS = ("stage1_block1", "stage2_block1", "stage3_block1", "stage4_block1")


def test_layer_decay_multiplies_the_rate_from_each_block_to_the_one_before():
    config = task_config("finetune", "x", layer_decay=0.5, head_lr=3.0)
    params = {
        "head": {"kernel": jnp.ones((1, 2, 3)), "bias": jnp.ones((1, 3))},
        "backbone": {
            **{f"block{i + 1}": {"qkv": {"kernel": jnp.ones((2, 6))}} for i in range(12)},
            **{name: {"scale": jnp.ones(2)} for name in ("norm", "cls_token", "patch_embed")},
            "stem_norm1": {"scale": jnp.ones(2)},
        },
    }
    got = factors(config, params, [f"block{i + 1}" for i in range(12)])
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (float(x.ravel()[0]), x.ndim)
        for path, x in jax.tree_util.tree_leaves_with_path(got)
    }
    assert flat["head/kernel"] == (3.0, 3) and flat["backbone/norm/scale"] == (1.0, 1)
    # Numbers 0, 1 and 12 of 12 blocks: .5 ** (13 - number).
    for name in ("cls_token", "patch_embed", "stem_norm1"):
        assert flat[f"backbone/{name}/scale"] == (0.5**13, 1)
    assert flat["backbone/block1/qkv/kernel"] == (0.5**12, 2)
    assert flat["backbone/block12/qkv/kernel"] == (0.5, 2)


def test_adamw_moves_each_parameter_by_its_rate_and_decays_kernels_only():
    """Adam's first step is the sign of the gradient, times the rate."""
    changes = {"optimizer": "adamw", "decay_all": False, "weight_decay": 0.5, "layer_decay": 0.5}
    state, step, _ = prepare("finetune", head_lr=2.0, **changes)
    moved = moved_by(state, step)
    rates = dict(zip(BLOCKS, (0.5**4, 0.5**3, 0.5**2, 0.5), strict=True)) | {"head": 2.0}
    kernels = 0
    for name, (before, after) in moved.items():
        layer = name.split("/")[0 if name.startswith("head") else 1]
        rate = rates.get(layer, 0.5**5)
        kernel = name.endswith("kernel")
        sign = (before - after) / rate - (0.5 * before if kernel else 0)
        # 0 where a kernel sees padding only; smaller where the gradient is as small as adam_eps.
        assert np.abs(sign).max() == pytest.approx(1, abs=1e-3), name
        kernels += kernel
    assert kernels == 13


def test_optimizer_equals_torchs_adamw():
    """Three steps with a schedule, in NumPy from the formulas of Loshchilov and Hutter 2019."""
    config = task_config("finetune", "x", optimizer="adamw", weight_decay=0.1, adam_b2=0.99)
    optimizer = make_optimizer(config, lambda at: 0.01 * jnp.asarray(SCHEDULE)[at])
    rng = np.random.default_rng(0)
    p = rng.normal(size=5)
    params = {"kernel": jnp.asarray(p, jnp.float32)}
    state, m, v = optimizer.init(params), np.zeros(5), np.zeros(5)
    for i, rate in enumerate(SCHEDULE):
        g = rng.normal(size=5)
        updates, state = optimizer.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        root = np.sqrt(v / (1 - 0.99 ** (i + 1))) + 1e-8
        p = p * (1 - 0.01 * rate * 0.1) - 0.01 * rate * m / (1 - 0.9 ** (i + 1)) / root
    np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


def test_schedule_falls_to_its_floor():
    config = task_config(
        "finetune", "x", lr=0.1, min_lr=0.02, lr_schedule="cosine", lr_update="step", steps=100,
        warmup_epochs=1.0,
    )  # fmt: skip
    schedule, _ = make_updates(config, (), 20)
    got = [float(schedule(at)) for at in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(got, [0, 0.05, 0.1, 0.06, 0.02], rtol=1e-5)
