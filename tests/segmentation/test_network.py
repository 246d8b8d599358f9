"""Compares the FCN's head, upsampling and loss with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.segmentation.network import Classifier, upsample
from moco_jax.segmentation.step import loss
from tests.convolution import convolve, normalized


def test_the_classifier_matches_numpy():
    head = Classifier(classes=3, width=4, dilation=2)
    maps = jax.random.normal(jax.random.key(1), (1, 7, 6, 5))
    shapes = jax.eval_shape(lambda x: head.init(jax.random.key(0), x, train=False), maps)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(-0.2, 0.5, x.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    p, s = variables["params"], variables["batch_stats"]
    x = np.asarray(maps[0], np.float64)
    for i in (1, 2):
        x = convolve(x, p[f"conv{i}"]["kernel"], 2)
        x = np.maximum(normalized(x, p[f"norm{i}"], s[f"norm{i}"]), 0)
    x = x @ p["output"]["kernel"][0, 0] + p["output"]["bias"]
    found = jax.jit(lambda v, x: head.apply(v, x, train=False))(variables, maps)
    np.testing.assert_allclose(found[0], x, rtol=1e-4)


@pytest.mark.parametrize(("length", "out", "stride"), [(3, 33, 16), (2, 30, 16), (4, 4, 1)])
def test_upsampling_puts_column_i_at_pixel_i_times_the_stride(length, out, stride):
    scores = np.random.default_rng(0).normal(size=(1, length, 1, 1)).astype(np.float32)
    # np.interp also extends the last value.
    line = np.interp(np.arange(out), np.arange(length) * stride, scores[0, :, 0, 0])
    down = upsample(jnp.asarray(scores), (out, 5), stride)
    np.testing.assert_allclose(down[0, :, :, 0], np.tile(line[:, None], 5), rtol=1e-5)
    across = upsample(jnp.asarray(scores.swapaxes(1, 2)), (5, out), stride)
    np.testing.assert_allclose(across[0, :, :, 0], np.tile(line, (5, 1)), rtol=1e-5)


def test_the_loss_is_the_mean_over_counted_pixels():
    scores = np.log(np.float32([[[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.1, 0.9]]]]))
    masks = np.uint8([[[0, 255], [1, 0]]])
    mean, accuracy = loss(jnp.asarray(scores), jnp.asarray(masks))
    assert float(mean) == pytest.approx(-(np.log(0.5) + np.log(0.8) + np.log(0.1)) / 3)
    assert float(accuracy) == pytest.approx(2 / 3)


def test_ignored_pixels_give_no_gradient():
    scores = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    masks = np.random.default_rng(0).integers(0, 5, (2, 3, 4)).astype(np.uint8)
    masks[0, :2] = 255
    grad = jax.jit(jax.grad(lambda scores, masks: loss(scores, masks)[0]))
    found = np.asarray(grad(scores, masks))
    assert (found[masks == 255] == 0).all() and (np.abs(found[masks != 255]).sum(-1) > 0).all()
    expected = np.asarray(jax.nn.softmax(scores)) - np.eye(5)[np.where(masks == 255, 0, masks)]
    counted = (masks != 255).sum()
    np.testing.assert_allclose(found[masks != 255], expected[masks != 255] / counted, atol=1e-6)
    nothing = np.asarray(grad(scores, np.full_like(masks, 255)))
    assert (nothing == 0).all()
