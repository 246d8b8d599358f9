"""Compares the blur with Pillow and with box blurs in float64."""

import jax
import numpy as np
import pytest
from PIL import ImageFilter

from moco_jax.data.augment import blur
from tests.data.augment import pillow_images

SIGMAS = np.array([0.1, 0.3, 0.7, 1.0, 1.5, 2.0], np.float32)


def boxed(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Returns planes after three box blurs per axis in float64, rounded after each axis."""
    # A box of `whole` pixels on either side, plus a fraction of the two outer pixels, such that
    # three boxes have the variance sigma**2.
    whole = int((np.sqrt(4 * sigma**2 + 1) - 1) / 2)
    ends = np.linspace(0, 1, 100_001)  # fractions of the outer pixels
    inner = sum(k * k for k in range(-whole, whole + 1))
    variances = (inner + 2 * ends * (whole + 1) ** 2) / (2 * whole + 1 + 2 * ends)
    end = ends[np.argmin(np.abs(variances - sigma**2 / 3))]
    kernel = np.array([end, *[1.0] * (2 * whole + 1), end]) / (2 * whole + 1 + 2 * end)
    pixels = planes.astype(float)
    for axis in (3, 1):
        for _ in range(3):
            reach = [(whole + 1,) * 2 if a == axis else (0, 0) for a in range(4)]
            padded = np.pad(pixels, reach, mode="edge")
            parts = np.moveaxis(padded, axis, -1)
            length = planes.shape[axis]
            total = sum(w * parts[..., k : k + length] for k, w in enumerate(kernel))
            pixels = np.moveaxis(total, -1, axis)
        pixels = np.floor(pixels + 0.5)
    return pixels


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.5, 1.9])
def test_gaussian_blur_equals_three_boxes(sigma):
    planes = np.random.default_rng(0).integers(0, 256, (2, 24, 3, 24), np.uint8)
    blurred = jax.jit(blur.gaussian_blur)(planes, np.full(2, sigma, np.float32))
    difference = np.abs(np.asarray(blurred, float) - boxed(planes, sigma))
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.skipif(
    not pillow_images.are_photographs(), reason="needs photographs, which are not in the repository"
)
@pytest.mark.parametrize("side", [32, 224])
def test_gaussian_blur_equals_pillow(side):
    photographs = pillow_images.squares(pillow_images.images(6), side)
    blurred = jax.jit(blur.gaussian_blur)(pillow_images.planes(photographs), SIGMAS)
    expected = [
        p.filter(ImageFilter.GaussianBlur(float(s)))
        for p, s in zip(photographs, SIGMAS, strict=True)
    ]
    difference = pillow_images.difference(blurred, expected)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.6
    assert difference.max() <= 3


def test_blur_matrix_averages():
    compiled = jax.jit(blur._blur_matrix, static_argnums=1)
    matrix = np.asarray(compiled(np.array([0.0, 0.1, 2.0, 9.0], np.float32), 16))
    np.testing.assert_allclose(matrix.sum(axis=2), 1.0, atol=1e-5)
    np.testing.assert_allclose(matrix[0], np.eye(16), atol=1e-6)
    # Far from the edges the variance is that of the Gaussian, sigma squared.
    wide = np.asarray(compiled(np.array([2.0], np.float32), 65))[0, 32]
    np.testing.assert_allclose((wide * (np.arange(65) - 32.0) ** 2).sum(), 4.0, rtol=1e-4)
