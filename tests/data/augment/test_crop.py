"""Compares windows with a reimplementation of torchvision, and pixels with Pillow."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from moco_jax.data.augment import crop
from tests.data.augment import pillow_images

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


@pytest.fixture(scope="module")
def photographs():
    return pillow_images.images(6)


def drawn_by_torchvision(rng, height, width, scale, ratio):
    """Returns one draw of `RandomResizedCrop.get_params`, as in its source."""
    for _ in range(10):
        target_area = height * width * rng.uniform(*scale)
        aspect_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = int(round(math.sqrt(target_area * aspect_ratio)))
        h = int(round(math.sqrt(target_area / aspect_ratio)))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    in_ratio = width / height
    w, h = width, height
    if in_ratio < min(ratio):
        h = int(round(w / min(ratio)))
    elif in_ratio > max(ratio):
        w = int(round(h * max(ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


@partial(jax.jit, static_argnames=("scale", "ratio"))
def compiled_windows(key, sizes, scale, ratio):
    return crop.random_windows(key, sizes, scale=scale, ratio=ratio)


compiled_crop = jax.jit(crop.crop_resize, static_argnums=2)


def random_windows(key, sizes, scale=SCALE, ratio=RATIO):
    return np.asarray(compiled_windows(key, sizes, scale, ratio))


@pytest.mark.parametrize("height, width", [(375, 500), (32, 32)])
def test_windows_are_distributed_as_torchvision(height, width):
    count = 4000
    windows = random_windows(jax.random.key(0), np.full((count, 2), (height, width), np.int32))
    rng = np.random.default_rng(0)
    expected = np.array(
        [drawn_by_torchvision(rng, height, width, SCALE, RATIO) for _ in range(count)]
    )
    for feature in (
        lambda w: w[:, 2] * w[:, 3],
        lambda w: w[:, 3] / w[:, 2],
        lambda w: w[:, 0],
        lambda w: w[:, 1],
    ):
        assert stats.ks_2samp(feature(windows), feature(expected)).pvalue > 0.01


def test_windows_are_whole_and_inside():
    sizes = np.array([(375, 500), (32, 32), (7, 900), (900, 7), (1, 1)] * 100, np.int32)
    windows = random_windows(jax.random.key(1), sizes, scale=(0.01, 1.0))
    np.testing.assert_array_equal(windows, np.round(windows))
    assert np.all(windows[:, :2] >= 0) and np.all(windows[:, 2:] >= 1)
    assert np.all(windows[:, :2] + windows[:, 2:] <= sizes)


def test_windows_fall_back_to_the_centre():
    # No window with a ratio in (3/4, 4/3) covers 90 % of a strip that is 10 times longer than wide.
    sizes = np.array([(30, 300), (300, 30), (31, 300)], np.int32)
    windows = random_windows(jax.random.key(2), sizes, scale=(0.9, 1.0))
    expected = [(0, 130, 30, 40), (130, 0, 40, 30), (0, 129, 31, 41)]
    np.testing.assert_array_equal(windows, expected)


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.01, 0.15)], ids=["shrinks", "enlarges"])
def test_crop_resize_equals_pillow(photographs, scale):
    pixels, sizes = pillow_images.canvas(photographs)
    windows = random_windows(jax.random.key(3), sizes, scale=scale)
    resized = np.asarray(compiled_crop(pixels, windows, 96))
    expected = []
    for image, (top, left, height, width) in zip(photographs, windows.astype(int), strict=True):
        cut = image.crop((left, top, left + width, top + height))
        expected.append(cut.resize((96, 96), Image.Resampling.BILINEAR))
    difference = pillow_images.difference(resized, expected)
    # If a result is halfway between two levels, the last bit decides.
    assert difference.max() <= 1
    assert difference.mean() < 0.05


def test_whole_image_at_its_own_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    windows = np.array([(0, 0, 32, 32), (5, 11, 32, 32)], np.float32)
    resized = np.asarray(compiled_crop(pixels, windows, 32))
    np.testing.assert_array_equal(resized[0], pixels[0, :32, :32].swapaxes(1, 2))
    np.testing.assert_array_equal(resized[1], pixels[1, 5:37, 11:43].swapaxes(1, 2))


@pytest.mark.parametrize("length, out", [(500, 224), (448, 224), (37, 224), (500, 32), (9, 8)])
def test_weights_sum_to_one(length, out):
    windows = np.array([(0, length), (length // 3, length // 2), (1.25, 7.5), (length - 1, 1)])
    bounds = np.array([(0, length), (length // 3, length // 2), (0, length), (length - 1, 1)])
    weights = crop._triangle_weights(*np.float32((windows, bounds)), length, out)
    assert weights.shape == (4, out, length)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)


def test_center_windows_equal_resize_and_center_crop(photographs):
    pixels, sizes = pillow_images.canvas(photographs)

    @jax.jit
    def central(pixels, sizes):
        windows = crop.center_windows(sizes, resize=110, crop=96)
        return crop.crop_resize(pixels, windows, 96, bounds=crop.image_bounds(sizes))

    resized = central(pixels, sizes)
    expected = []
    for image in photographs:
        width, height = image.size
        if width <= height:
            width, height = 110, int(110 * height / width)
        else:
            width, height = int(110 * width / height), 110
        left, top = int(round((width - 96) / 2.0)), int(round((height - 96) / 2.0))
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        expected.append(whole.crop((left, top, left + 96, top + 96)))
    difference = pillow_images.difference(resized, expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


def test_center_window_larger_than_the_image_is_an_error():
    with pytest.raises(ValueError, match="crop=224, resize=200"):
        crop.center_windows(np.array([[300, 400]], np.int32), resize=200, crop=224)


def test_large_batches_are_rounded_as_small_ones():
    """Large batches use other kernels; one XLA kernel for CPUs rounds where it should truncate."""
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    sizes = np.full((256, 2), 32, np.int32)
    planes = compiled_crop(
        images, crop.center_windows(sizes, resize=16, crop=16), 16,
        bounds=crop.image_bounds(sizes),
    )  # fmt: skip
    expected = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
        for image in images
    ]
    np.testing.assert_array_equal(np.swapaxes(planes, 2, 3), expected)
