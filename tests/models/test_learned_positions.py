"""Learned positions of a ViT start as the fixed ones, get a gradient, and belong to one size."""

import jax
import numpy as np
import pytest

from moco_jax.models.backbones import make_backbone
from tests.tiny import tiny_config

SIZE, PATCH, DIM = 16, 4, 32


def backbone(positions: str):
    model = {"name": "vit_tiny", "stem": "patch", "width": DIM / 192, "depth": 1, "heads": 4}
    model |= {"patch": PATCH, "positions": positions}
    return make_backbone(tiny_config(**{f"model__{k}": v for k, v in model.items()}).model)


@pytest.fixture(scope="module")
def variables():
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    return jax.jit(lambda: backbone("learned").init(jax.random.key(0), images, train=False))()


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def test_they_start_as_the_fixed_ones(variables):
    params = dict(variables["params"])
    assert params.pop("positions").shape == (1, 1 + (SIZE // PATCH) ** 2, DIM)
    want = backbone("sincos").apply({"params": params}, images(SIZE), train=False)
    got = backbone("learned").apply(variables, images(SIZE), train=False)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_they_are_trained(variables):
    def loss(params):
        return backbone("learned").apply({"params": params}, images(SIZE), train=True).std()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all(abs(row).max() > 0 for row in np.asarray(grads["positions"][0]))


def test_images_of_another_size_are_refused(variables):
    with pytest.raises(ValueError, match="for images of 16 x 16 pixels, but the images have 8 x 8"):
        backbone("learned").apply(variables, images(8), train=False)
