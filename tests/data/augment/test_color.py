"""Compares colour operations with Pillow, and hue with torchvision's `adjust_hue` on Pillow."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from moco_jax.data.augment import color, photometric
from tests.data.augment import pillow_images

FACTORS = np.array([0.0, 0.31, 0.6, 1.0, 1.37, 1.9], np.float32)
SHIFTS = np.array([-0.5, -0.21, -0.004, 0.0, 0.1, 0.5], np.float32)


@pytest.fixture(scope="module")
def photographs():
    return pillow_images.squares(pillow_images.images(6), 64)


def adjust_hue(image, shift):
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(shift * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def enhancer(kind):
    return lambda image, factor: kind(image).enhance(float(factor))


PILLOW = {
    "brightness": enhancer(ImageEnhance.Brightness),
    "contrast": enhancer(ImageEnhance.Contrast),
    "saturation": enhancer(ImageEnhance.Color),
    "hue": lambda image, shift: adjust_hue(image, float(shift)),
}


def change(planes, name, values):
    """Returns planes with one of the four changes, by a factor or a shift per image."""
    position = list(PILLOW).index(name)
    ranks, factors = np.full((len(planes), 4), -1), np.ones((len(planes), 3), np.float32)
    ranks[:, position] = 0
    if name != "hue":
        factors[:, position] = values
    return jax.jit(color.apply_jitter)(planes, ranks, factors, values if name == "hue" else None)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_equal_pillow(photographs, name):
    changed = change(pillow_images.planes(photographs), name, FACTORS)
    expected = [PILLOW[name](p, f) for p, f in zip(photographs, FACTORS, strict=True)]
    difference = pillow_images.difference(changed, expected)
    # If a product is close to a whole level, its last bit changes the truncated level.
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


def test_hue_equals_torchvision_on_pillow(photographs):
    changed = change(pillow_images.planes(photographs), "hue", SHIFTS)
    expected = [PILLOW["hue"](p, s) for p, s in zip(photographs, SHIFTS, strict=True)]
    assert pillow_images.difference(changed, expected).mean() < 0.02


def test_hsv_of_all_colours_equals_pillow():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    cube = cube.reshape(1, len(levels), -1, 3)
    hsv = np.stack(color._to_hsv(np.moveaxis(cube.astype(np.float32), -1, 0)), axis=-1)[0]
    expected = np.asarray(Image.fromarray(cube[0]).convert("HSV"))
    # If the hue is a whole level, the float32 of Pillow may be one level below.
    wrong = hsv != expected
    assert np.abs(hsv - expected).max() <= 1
    assert wrong[..., 0].mean() < 0.02 and not wrong[..., 1:].any()

    hue, saturation, value = np.moveaxis(cube.astype(np.float32), -1, 0)
    rgb = np.stack(color._from_hsv(hue, saturation, value), axis=-1)
    expected = Image.frombytes("HSV", cube.shape[2:0:-1], cube.tobytes()).convert("RGB")
    np.testing.assert_array_equal(rgb[0], np.asarray(expected))


def test_grayscale_and_solarize_equal_pillow(photographs):
    images = pillow_images.planes(photographs)
    grey = [p.convert("L").convert("RGB") for p in photographs]
    np.testing.assert_array_equal(color.grayscale(images), pillow_images.planes(grey))
    for threshold in (128, 40, 256):
        inverted = [ImageOps.solarize(p, threshold) for p in photographs]
        solarized = color.solarize(images, threshold)
        np.testing.assert_array_equal(solarized, pillow_images.planes(inverted))


def test_apply_jitter_uses_the_order_of_each_image(photographs):
    names = list(PILLOW)
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (3, 1, 0, 2), (0, 2, 1, 3)]
    factors = np.random.default_rng(0).uniform(0.6, 1.4, (6, 3)).astype(np.float32)
    expected = []
    for image, order, row, shift in zip(photographs, orders, factors, SHIFTS, strict=True):
        for index in order:
            image = PILLOW[names[index]](image, [*row, shift][index])
        expected.append(image)
    ranks = np.argsort(orders, axis=1)
    images = pillow_images.planes(photographs)
    jittered = jax.jit(color.apply_jitter)(images, ranks, factors, SHIFTS)
    difference = pillow_images.difference(jittered, expected)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.05


def test_changes_without_a_rank_are_skipped(photographs):
    # Saturation then brightness, hue only, nothing, contrast only, nothing, nothing.
    ranks = np.full((6, 4), -1)
    ranks[0, [2, 0]], ranks[1, 3], ranks[3, 1] = (0, 1), 0, 0
    factors = np.full((6, 3), 1.3, np.float32)
    expected = list(photographs)
    expected[0] = PILLOW["brightness"](PILLOW["saturation"](photographs[0], 1.3), 1.3)
    expected[1] = PILLOW["hue"](photographs[1], SHIFTS[1])
    expected[3] = PILLOW["contrast"](photographs[3], 1.3)
    images = pillow_images.planes(photographs)
    jittered = jax.jit(color.apply_jitter)(images, ranks, factors, SHIFTS)
    difference = pillow_images.difference(jittered, expected)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.02
    np.testing.assert_array_equal(jittered[2], images[2])


@pytest.mark.parametrize("hue", [True, False], ids=["hue", "no hue"])
def test_all_orders_equal_the_single_changes(hue):
    orders = np.array(list(itertools.permutations(range(4))))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 6, 3, 6), np.uint8)
    factors = rng.uniform(0.0, 2.0, (24, 3)).astype(np.float32)
    shifts = rng.uniform(-0.5, 0.5, 24).astype(np.float32)
    expected = images
    for turn in range(4):
        turned = [
            change(expected, name, x) for name, x in zip(PILLOW, [*factors.T, shifts], strict=True)
        ]
        turned[3] = turned[3] if hue else expected
        expected = np.stack([turned[kind][i] for i, kind in enumerate(orders[:, turn])])
    ranks = np.argsort(orders, axis=1)
    jittered = color.apply_jitter(images, ranks, factors, shifts if hue else None)
    # A fused multiplication and addition may truncate to another level.
    difference = np.abs(np.asarray(jittered, int) - expected)
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("hue", [True, False], ids=["hue", "no hue"])
def test_unrolled_rounds_equal_the_loop(hue):
    ranks = np.array(list(itertools.permutations(range(4))))
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**24, (24, 6, 6), np.int32)
    drawn = [ranks, np.float32(rng.uniform(0.0, 2.0, (24, 3)))]
    drawn += [np.float32(rng.uniform(-0.5, 0.5, 24))] if hue else []
    looped, unrolled = (
        np.asarray(jax.jit(way)(words, *drawn)).view(np.uint8).astype(int)
        for way in (color._looped, color._unrolled)
    )
    # A fused multiplication and addition may truncate to another level.
    assert (looped != unrolled).mean() < 0.01


def test_draws_are_distributed_as_torchvision():
    # With a strength above 1, factors start at 0.
    ranks, factors, shift = color.draw_jitter(jax.random.key(0), 4800, (0.4, 0.1, 1.5), 0.1)
    ranges = [(0.6, 1.4), (0.9, 1.1), (0.0, 2.5), (-0.1, 0.1)]
    for drawn, (low, high) in zip([*np.asarray(factors).T, shift], ranges, strict=True):
        assert stats.kstest(np.asarray(drawn), stats.uniform(low, high - low).cdf).pvalue > 0.01
    orders, counts = np.unique(np.asarray(ranks), axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, axis=1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 0.01
    assert abs(np.corrcoef(np.asarray(factors).T) - np.eye(3)).max() < 0.05
    assert color.draw_jitter(jax.random.key(0), 4, (0.4, 0.4, 0.4), 0.0)[2] is None


def test_color_jitter_draws_from_its_ranges():
    # A uniform grey of 100 shows the brightness factor; contrast and saturation do not change it.
    images = jnp.full((4000, 2, 3, 2), 100, jnp.uint8)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    jittered = jax.jit(partial(photometric.color_jitter, **strengths))(jax.random.key(0), images)
    levels = np.asarray(jittered)[:, 0, 0, 0]
    assert levels.min() == 60 and levels.max() == 139
    # Truncation lowers the mean of 100 by half a level.
    assert abs(levels.mean() - 99.5) < 1.5
    np.testing.assert_array_equal(
        jittered, jnp.broadcast_to(levels[:, None, None, None], (4000, 2, 3, 2))
    )


def test_color_jitter_without_hue_keeps_colours():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 3, 8), np.uint8)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    jittered = jax.jit(partial(photometric.color_jitter, **none))(jax.random.key(0), images)
    np.testing.assert_array_equal(jittered, images)
