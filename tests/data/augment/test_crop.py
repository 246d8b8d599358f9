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
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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


compiled_crop = jax.jit(crop.crop_resize, static_argnums=2, static_argnames="interpolation")


def rows_first(image, size, interpolation):
    """Returns the image resized along its rows, then along its columns.

    Up to Pillow 12 `resize` did so; Pillow 13 chooses the order that costs less.
    """
    width, height = size
    wide = image.resize((width, image.height), FILTERS[interpolation])
    return wide.resize((width, height), FILTERS[interpolation])


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


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.01, 0.15)], ids=["shrinks", "enlarges"])
def test_crop_resize_equals_pillow(photographs, scale, interpolation):
    pixels, sizes = pillow_images.canvas(photographs)
    windows = random_windows(jax.random.key(3), sizes, scale=scale)
    resized = np.asarray(compiled_crop(pixels, windows, 96, interpolation=interpolation))
    cut = [
        image.crop((left, top, left + width, top + height))
        for image, (top, left, height, width) in zip(photographs, windows.astype(int), strict=True)
    ]
    expected = [rows_first(image, (96, 96), interpolation) for image in cut]
    difference = pillow_images.difference(resized, expected)
    # If a result is halfway between two levels, the last bit decides.
    assert difference.max() <= 1
    assert difference.mean() < 0.05
    in_any_order = [image.resize((96, 96), FILTERS[interpolation]) for image in cut]
    assert pillow_images.difference(resized, in_any_order).mean() < 0.3


@pytest.mark.parametrize("out", [16, 56], ids=["shrinks", "enlarges"])
def test_bicubic_overshoot_is_clipped_after_each_pass(out):
    """Next to an edge between black and white the weighted sums leave 0..255."""
    pixels = 255 * np.random.default_rng(0).integers(0, 2, (4, 24, 24, 3), dtype=np.uint8)
    windows = np.full((4, 4), (0, 0, 24, 24), np.float32)
    resized = compiled_crop(pixels, windows, out, interpolation="bicubic")
    expected = [rows_first(Image.fromarray(image), (out, out), "bicubic") for image in pixels]
    difference = pillow_images.difference(resized, expected)
    assert difference.max() <= 1 and difference.mean() < 0.005


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_negative_width_mirrors(photographs, interpolation):
    pixels, sizes = pillow_images.canvas(photographs)
    windows = random_windows(jax.random.key(4), sizes)
    mirrored = np.array(
        [(top, left + width, height, -width) for top, left, height, width in windows]
    )
    options = {"bounds": windows, "interpolation": interpolation}
    got, expected = (
        np.asarray(compiled_crop(pixels, w, 48, **options), int) for w in (mirrored, windows)
    )
    difference = np.abs(got - expected[..., ::-1])
    assert difference.max() <= 1 and difference.mean() < 0.001


def test_whole_image_at_its_own_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    windows = np.array([(0, 0, 32, 32), (5, 11, 32, 32)], np.float32)
    resized = np.asarray(compiled_crop(pixels, windows, 32))
    np.testing.assert_array_equal(resized[0], pixels[0, :32, :32].swapaxes(1, 2))
    np.testing.assert_array_equal(resized[1], pixels[1, 5:37, 11:43].swapaxes(1, 2))


@pytest.mark.parametrize("filtered", [crop._triangle, crop._cubic])
@pytest.mark.parametrize("length, out", [(500, 224), (448, 224), (37, 224), (500, 32), (9, 8)])
def test_weights_sum_to_one(length, out, filtered):
    windows = np.array([(0, length), (length // 3, length // 2), (1.25, 7.5), (length - 1, 1)])
    bounds = np.array([(0, length), (length // 3, length // 2), (0, length), (length - 1, 1)])
    weights = crop._weights(filtered, *np.float32((windows, bounds)), length, out)
    assert weights.shape == (4, out, length)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_center_windows_equal_resize_and_center_crop(photographs, interpolation):
    pixels, sizes = pillow_images.canvas(photographs)

    @jax.jit
    def central(pixels, sizes):
        windows = crop.center_windows(sizes, resize=110, crop=96)
        bounds = crop.image_bounds(sizes)
        return crop.crop_resize(pixels, windows, 96, bounds=bounds, interpolation=interpolation)

    resized = central(pixels, sizes)
    expected = []
    for image in photographs:
        width, height = image.size
        if width <= height:
            width, height = 110, int(110 * height / width)
        else:
            width, height = int(110 * width / height), 110
        left, top = int(round((width - 96) / 2.0)), int(round((height - 96) / 2.0))
        whole = rows_first(image, (width, height), interpolation)
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


OUT, MARGIN, SHIFT = 24, 8, 5
CROP = {"scale": SCALE, "ratio": RATIO, "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def noise():
    images = np.random.default_rng(0).integers(0, 256, (96, 32, 40, 3), dtype=np.uint8)
    return images, np.full((96, 2), (32, 40), np.int32)


def random_crops(noise, out, key=0, **options):
    crops = partial(crop.random_crops, out=out, **CROP, **options)
    return np.asarray(jax.jit(crops)(*map(jax.random.key, (0, key)), *noise), int)


def moved(whole, got):
    """Returns the corner [row, column] of the part of `whole` [C, 3, C] that `got` [S, 3, S] is."""
    room, side = len(whole) - len(got), len(got)
    corners = [(y, x) for y in range(room + 1) for x in range(room + 1)]
    distances = [np.abs(whole[y : y + side, :, x : x + side] - got).mean() for y, x in corners]
    assert min(distances) < 0.01 and sorted(distances)[1] > 1
    return corners[int(np.argmin(distances))]


def test_a_part_of_a_crop_begins_up_to_the_shift_from_its_corner(noise):
    whole = random_crops(noise, OUT + MARGIN, flip=0.5)
    unmoved = random_crops(noise, OUT, margin=MARGIN, flip=0.5)
    assert np.abs(unmoved - whole[:, :OUT, :, :OUT]).max() <= 1
    parts = random_crops(noise, OUT, key=1, margin=MARGIN, flip=0.5, shift=SHIFT)
    corners = np.array([moved(*pair) for pair in zip(whole, parts, strict=True)])
    for axis in (0, 1):
        assert set(corners[:, axis]) == set(range(SHIFT + 1))
        counts = np.bincount(corners[:, axis])
        assert stats.chisquare(counts).pvalue > 0.01
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.3
    other = random_crops(noise, OUT, key=2, margin=MARGIN, flip=0.5, shift=SHIFT)
    assert (other != parts).any()


def test_a_flipped_crop_is_the_same_window_mirrored(noise):
    plain, mirrored, either = (random_crops(noise, OUT, flip=p) for p in (1e-9, 1.0, 0.5))
    assert np.abs(mirrored - plain[..., ::-1]).max() <= 1
    chosen = np.array([(a == b).all() for a, b in zip(either, mirrored, strict=True)])
    np.testing.assert_array_equal(either[~chosen], plain[~chosen])
    assert 0.3 < chosen.mean() < 0.7


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"], ids="for_{}".format)
def test_no_crop_reads_pixels_by_index(noise, platform):
    crops = partial(crop.random_crops, out=OUT, **CROP, flip=0.5, margin=MARGIN, shift=SHIFT)
    traced = jax.jit(crops).trace(jax.random.key(0), jax.random.key(1), *noise)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text
    assert "gather" not in text and "dynamic_slice" not in text
