"""MoCo v3's step: a predictor on the query side, 2T, both directions, a momentum that rises."""

import functools
import math

import jax
import numpy as np
import pytest

from moco_jax.contrastive.key_encoders import momentum_rate
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.method import make_method
from tests.contrastive.test_train_step import IMAGES, agree, indices, losses, prepare, views
from tests.tiny import tiny_config

V3 = dict(
    dictionary="in_batch",
    key_encoder="momentum",
    symmetric=True,
    bn_groups=1,
    shuffle_bn=False,
    model__head="mlp_bn",
    model__hidden=32,
    model__predictor_layers=2,
    loss_scale="2T",
    momentum_schedule="cosine",
    optimizer="lars",
    lr=0.1,
)
VIT = dict(
    model__name="vit_tiny",
    model__stem="patch",
    model__patch=8,
    model__depth=2,
    model__heads=2,
    model__width=1 / 6,
    optimizer="adamw",
    lr=0.01,
    weight_decay=0.1,
)


@functools.cache
def one_step():
    """Returns the state before and after a step, and its metrics."""
    before, step, layout = prepare(1, **V3)
    before = jax.device_get(before)
    # Make the encoders differ, as after some steps.
    before = before.replace(
        step=np.int32(4), key_params=jax.tree.map(lambda x: x * 1.1 + 0.01, before.key_params)
    )
    placed = jax.device_put(before, layout.replicated)
    after, metrics = step(placed, *layout.put_batch((views()[0], indices(0))))
    return before, jax.device_get(after), jax.device_get(metrics)


def close(got, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), got, expected)


def test_key_encoder_has_no_predictor():
    before, after, _ = one_step()
    assert set(before.params) == set(after.batch_stats) == {"backbone", "head", "predictor"}
    for state in (before, after):
        assert set(state.key_params) == set(state.key_batch_stats) == {"backbone", "head"}


def test_key_encoder_follows_by_the_momentum_of_the_step():
    before, after, _ = one_step()
    m = 1 - (1 + math.cos(math.pi * 4 / 10)) / 2 * (1 - 0.9)  # step 4 of 10, from .9 to 1
    for name in ("backbone", "head"):
        expected = jax.tree.map(
            lambda k, q: m * k + (1 - m) * q, before.key_params[name], before.params[name]
        )
        close(after.key_params[name], expected, rtol=1e-5, atol=1e-6)


def test_loss_is_the_sum_of_both_directions_times_2t():
    before, after, metrics = one_step()
    encoder = make_encoder(tiny_config(**V3))

    def encode(params, stats, images, method):
        variables = {"params": params, "batch_stats": stats}
        run = lambda e, x: getattr(e, method)(e.backbone(x, train=True), train=True)  # noqa: E731
        vectors, changed = encoder.apply(variables, images, mutable=["batch_stats"], method=run)
        return np.float64(vectors), changed["batch_stats"]

    q1, stats = encode(before.params, before.batch_stats, views()[0][0], "queries")
    q2, stats = encode(before.params, stats, views()[0][1], "queries")
    k1, key_stats = encode(after.key_params, before.key_batch_stats, views()[0][0], "keys")
    k2, key_stats = encode(after.key_params, key_stats, views()[0][1], "keys")

    def cross_entropy(q, k):
        logits = q @ k.T / 0.2
        return (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()

    expected = 2 * 0.2 * (cross_entropy(q1, k2) + cross_entropy(q2, k1))
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    # Each view updates the running averages, in the order of the views in both encoders.
    close(after.batch_stats, stats, rtol=1e-3, atol=1e-4)
    close(after.key_batch_stats, key_stats, rtol=1e-3, atol=1e-4)


def test_gradient_norms_of_the_first_and_last_layers_are_parts_of_the_whole():
    _, _, metrics = one_step()
    first, last, whole = (float(metrics[f"grad_norm{end}"]) for end in ("_first", "_last", ""))
    assert 0 < first < whole
    assert 0 < last < whole
    assert first != last


def test_frozen_patches_of_a_vit_keep_their_weights():
    state, step, layout = prepare(1, **V3 | VIT | {"model__freeze_patch": True})
    before = jax.device_get(state.params["backbone"])
    for number in range(2):
        state, metrics = step(state, *layout.put_batch((views()[number], indices(number))))
    after = jax.device_get(state.params["backbone"])
    for name, part in after.items():
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before[name], part)), strict=True)
        ]
        assert not any(moved) if name == "patch_embed" else all(moved), name
    followed = jax.device_get(state.key_params["backbone"]["patch_embed"])
    close(followed, before["patch_embed"], rtol=1e-6)
    assert float(metrics["grad_norm_first"]) > 0  # of the first block


def test_vit_without_batch_norm_has_no_statistics():
    state, step, layout = prepare(1, **VIT, model__head="linear")
    state, metrics = step(state, *layout.put_batch((views()[0], indices(0))))
    assert state.batch_stats == {} == state.key_batch_stats
    assert float(metrics["grad_norm_first"]) > 0


def test_chance_is_4t_times_the_log_of_the_batch():
    config = tiny_config(**V3, batch_size=64)
    method = make_method(config, make_layout(jax.devices()[:8]), IMAGES)
    assert method.chance_loss == pytest.approx(4 * 0.2 * math.log(64))


@pytest.mark.slow  # two compilations
def test_losses_do_not_depend_on_the_number_of_devices():
    agree(losses(8, **V3), losses(1, **V3))


def test_momentum_rises_to_1_and_is_logged_for_the_step():
    config = tiny_config(momentum=0.99, momentum_schedule="cosine")
    rate = momentum_rate(config, steps=100)
    got = [1 - float(rate(step)) for step in (0, 25, 50, 100, 120)]
    quarter = 1 - (1 + math.cos(math.pi / 4)) / 2 * 0.01
    np.testing.assert_allclose(got, [0.99, quarter, 0.995, 1, 1], atol=1e-7)

    layout = make_layout(jax.devices()[:1])
    method = make_method(tiny_config(momentum_schedule="cosine", momentum=0.9), layout, IMAGES)
    assert method.momentum(5) == pytest.approx(0.95)  # the run has 10 steps
    assert make_method(tiny_config(momentum=0.9), layout, IMAGES).momentum(5) == 0.9


def test_scale_of_the_loss_is_that_of_its_gradient():
    plain, scaled = (np.asarray(losses_and_norms(loss_scale=name)) for name in ("none", "2T"))
    np.testing.assert_allclose(scaled, 0.4 * plain, rtol=1e-5)


def losses_and_norms(**changes) -> tuple[float, float]:
    state, step, layout = prepare(1, **changes)
    _, metrics = step(state, *layout.put_batch((views()[0], indices(0))))
    return float(metrics["loss"]), float(metrics["grad_norm"])
