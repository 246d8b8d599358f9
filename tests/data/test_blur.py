"""The blur against Pillow's."""

import jax
import numpy as np
import pytest
from PIL import ImageFilter

from moco_jax.data import blur
from tests.data import pillow_pictures

SIGMAS = np.array([0.1, 0.3, 0.7, 1.0, 1.5, 2.0], np.float32)


@pytest.mark.parametrize("side", [32, 224])
def test_gaussian_blur_is_pillows(side):
    photographs = pillow_pictures.squares(pillow_pictures.pictures(6), side)
    blurred = jax.jit(blur.gaussian_blur)(pillow_pictures.planes(photographs), SIGMAS)
    expected = [
        p.filter(ImageFilter.GaussianBlur(float(s)))
        for p, s in zip(photographs, SIGMAS, strict=True)
    ]
    difference = pillow_pictures.difference(blurred, expected)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.6
    assert difference.max() <= 3


def test_blur_matrix_averages():
    compiled = jax.jit(blur._blur_matrix, static_argnums=1)
    matrix = np.asarray(compiled(np.array([0.0, 0.1, 2.0, 9.0], np.float32), 16))
    np.testing.assert_allclose(matrix.sum(axis=2), 1.0, atol=1e-5)
    np.testing.assert_allclose(matrix[0], np.eye(16), atol=1e-6)
    # Far from the edges the variance is the Gaussian's: sigma squared.
    wide = np.asarray(compiled(np.array([2.0], np.float32), 65))[0, 32]
    np.testing.assert_allclose((wide * (np.arange(65) - 32.0) ** 2).sum(), 4.0, rtol=1e-4)
