"""Tests that crops of an image and its mask agree."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax.segmentation import views
from tests.segmentation import scenes

COLORS = np.asarray(scenes.COLORS, np.float32)
SIZE = 24


@pytest.fixture(scope="module")
def batch():
    """16 noiseless scenes of different sizes on canvases of 40 x 44; the label sets the colour."""
    rng = np.random.default_rng(0)
    images = np.zeros((16, 40, 44, 3), np.uint8)
    masks = np.full((16, 40, 44), 255, np.uint8)
    sizes = np.stack([rng.integers(20, 41, 16), rng.integers(20, 45, 16)], 1).astype(np.int32)
    for image, mask, (height, width) in zip(images, masks, sizes, strict=True):
        labels = rng.integers(0, scenes.CLASSES, (5, 6)).repeat(8, 0).repeat(8, 1)
        mask[:height, :width] = labels[:height, :width]
        image[:height, :width] = COLORS[labels[:height, :width]]
    return images, masks, sizes


def config(**changes):
    plain = {"data__mean": (0.0,) * 3, "data__std": (1.0,) * 3, "data__image_size": SIZE}
    return scenes.tiny_config("x", **plain | changes)


def draw(batch, seed=0, **changes):
    view = jax.jit(functools.partial(views.training_view, config(**changes)))
    images, masks = jax.device_get(view(jax.random.key(seed), *batch))
    return np.round(images * 255), masks


def nearest_color(images):
    return np.abs(images[..., None, :] - COLORS).sum(-1).argmin(-1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (2.0, 2.0), (0.5, 2.0)])
def test_the_mask_follows_its_image(batch, scale, flip):
    images, masks = draw(batch, data__scale=scale, data__flip=flip)
    inside = masks != 255
    # A blend of two colours may be nearest to a third, so not all pixels agree.
    assert 0.2 < inside.mean() <= 1
    agree = (nearest_color(images) == masks)[inside].mean()
    assert agree > 0.8
    moved = (nearest_color(images) == np.roll(masks, 3, axis=2))[inside].mean()
    assert moved < agree - 0.15
    assert (images[~inside] == 0).all()


def test_flips_mirror_both(batch):
    plain, mirrored = (draw(batch, data__flip=p) for p in (0.0, 1.0))
    for a, b in zip(plain, mirrored, strict=True):
        np.testing.assert_array_equal(a[:, :, ::-1], b)
    mixed = draw(batch, data__flip=0.5)[1]
    kinds = [np.array_equal(m, p) for m, p in zip(mixed, plain[1], strict=True)]
    assert 0 < sum(kinds) < 16


def test_a_crop_at_scale_1_copies_the_pixels(batch):
    images, masks, sizes = batch
    windows = np.tile(np.float32([3, 5, SIZE, SIZE]), (16, 1))
    cut = jax.jit(lambda *a: views.cut(*a, SIZE))
    found, labels, inside = jax.device_get(cut(images, masks, sizes, windows))
    np.testing.assert_array_equal(labels, masks[:, 3 : 3 + SIZE, 5 : 5 + SIZE])
    np.testing.assert_array_equal(inside, labels != 255)
    expected = images[:, 3 : 3 + SIZE, 5 : 5 + SIZE]
    np.testing.assert_array_equal(found[inside], expected[inside])


def test_resizing_matches_pillow(batch):
    images, masks, sizes = batch
    windows = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32)
    cut = jax.jit(lambda *a: views.cut(*a, SIZE))
    found, labels, inside = jax.device_get(cut(images, masks, sizes, windows))
    assert inside.all()
    for i, (height, width) in enumerate(sizes):
        mask = Image.fromarray(masks[i, :height, :width]).resize((SIZE, SIZE), Image.NEAREST)
        np.testing.assert_array_equal(labels[i], mask)
        image = Image.fromarray(images[i, :height, :width])
        expected = np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR), np.int16)
        assert np.abs(found[i] - expected).max() <= 1


def test_windows_have_valid_scales_and_places():
    sizes = np.tile(np.int32([[100, 10]]), (4000, 1))
    draw = lambda key: views.random_windows(key, sizes, 20, (0.5, 2.0))  # noqa: E731
    top, left, height, width = np.asarray(jax.jit(draw)(jax.random.key(0))).T
    np.testing.assert_array_equal(height, width)
    scale = 20 / height
    assert scale.min() >= 0.5 and scale.max() <= 2.0
    np.testing.assert_allclose(np.histogram(scale, 3, (0.5, 2.0))[0], 4000 / 3, rtol=0.1)
    # The image is higher than every window, and narrower than every window.
    assert (top >= 0).all() and (top + height <= 100.001).all()
    assert (left <= 0).all() and (left + width >= 9.999).all()
    assert np.std(top) > 10 and np.std(left) > 2


def test_evaluation_shows_whole_images_with_mean_padding(batch):
    images, masks, sizes = batch
    changed = config(data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    view = jax.jit(functools.partial(views.evaluation_view, changed))
    found = np.asarray(view(images, sizes))
    assert found.shape == images.shape
    outside = masks == 255
    assert (found[outside] == 0).all()
    expected = (images[~outside] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[~outside], expected, rtol=1e-5, atol=1e-6)
