"""RandAugment against Pillow, one operation at a time, and the distribution of its draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from moco_jax.data.augment import random_operations, shears
from moco_jax.data.augment.random_operations import NONE, OPERATIONS
from tests.data.augment.pillow_images import difference, images, planes, squares
from tests.weights.networks import library

SIDE = 48
FILL = (124, 116, 104)
BILINEAR = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **BILINEAR)


def table(image, levels):
    return image.point(list(levels) * 3)


def pillow(name: str, image: Image.Image, magnitude: float, sign: int) -> Image.Image:
    """Returns an image after an operation of timm's increasing set."""
    level = magnitude / 10
    signed = sign * level
    enhanced = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhanced:
        return enhanced[name](image).enhance(max(0.1, 1 + 0.9 * signed))
    operations = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(30 * signed, **BILINEAR),
        # Pillow's own function refuses to keep 0 bits, the strongest.
        "posterize": lambda: table(image, [i & (240 << int(4 * level)) & 255 for i in range(256)]),
        "solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(256 * level))),
        "solarize_add": lambda: table(
            image, [min(255, i + int(110 * level)) if i < 128 else i for i in range(256)]
        ),
        "shear_x": lambda: affine(image, 1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, 0.45 * signed * SIDE, 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, 0.45 * signed * SIDE),
    }
    return operations[name]()


@pytest.fixture(scope="module")
def squared():
    """Photographs, a grey image and one with two levels."""
    plain = [Image.new("RGB", (SIDE, SIDE), (90, 90, 90))]
    halves = Image.new("RGB", (SIDE, SIDE), (30, 200, 30))
    halves.paste((220, 40, 30), (0, 0, SIDE, SIDE // 3))
    return [*squares(images(4), SIDE), *plain, halves]


@functools.cache
def compiled():
    return jax.jit(functools.partial(random_operations.apply, fill=FILL))


def ours(squared, names, magnitude, sign):
    """Returns the images after the operations of two rounds; None does nothing."""
    numbers = [OPERATIONS.index(name) if name else NONE for name in names]
    shape = (2, len(squared))
    operations = np.broadcast_to(np.int32(numbers)[:, None], shape)
    magnitudes, signs = np.full(shape, magnitude, np.float32), np.full(shape, sign, np.float32)
    return np.asarray(compiled()(planes(squared), operations, magnitudes, signs))


EXACT = {"equalize", "invert", "posterize", "solarize", "solarize_add", "color", "contrast"}
EXACT |= {"brightness", "sharpness"}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("magnitude", [0.0, 3.2, 9.3, 10.0])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "rotate"])
def test_operation_equals_pillow(squared, name, magnitude, sign):
    expected = [pillow(name, image, magnitude, sign) for image in squared]
    off = difference(ours(squared, (name, None), magnitude, sign), expected)
    # Pillow truncates interpolated levels, and its autocontrast has floating-point errors.
    assert off.max() <= (0 if name in EXACT else 1)


@pytest.mark.parametrize("degrees", [-30, -7, 12, 30])
def test_rotation_is_close_to_pillows(squared, degrees):
    """Three interpolations of a smooth image differ little from one; the border is the same."""
    smooth = [
        image.resize((4, 4), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for image in squared
    ]
    expected = [image.rotate(degrees, **BILINEAR) for image in smooth]
    got = ours(smooth, ("rotate", None), abs(degrees) / 3, np.sign(degrees))
    off = difference(got, expected)
    assert np.median(off) <= 1
    white = [Image.new("RGB", (SIDE, SIDE), (255, 255, 255))]
    edge = difference(ours(white, ("rotate", None), abs(degrees) / 3, np.sign(degrees)),
                      [white[0].rotate(degrees, **BILINEAR)])  # fmt: skip
    assert (edge > 1).mean() < 0.06  # one soft pixel along four sides


@pytest.mark.parametrize(
    "pair",
    [
        ("shear_x", "invert"),
        ("invert", "shear_x"),
        ("equalize", "color"),
        ("sharpness", "equalize"),
    ],
)
def test_operations_apply_in_their_order(squared, pair):
    expected = [pillow(pair[1], pillow(pair[0], image, 8, 1), 8, 1) for image in squared]
    off = difference(ours(squared, pair, 8, 1), expected)
    # A level that is rounded otherwise before equalize may land far away; most are equal.
    assert (off <= 1).mean() > (0.999 if "equalize" not in pair else 0.98)


def test_each_image_has_its_own_operation(squared):
    count = len(squared)
    operations = np.stack([np.arange(count) % NONE, np.full(count, NONE)]).astype(np.int32)
    magnitudes, signs = np.full((2, count), 9, np.float32), np.ones((2, count), np.float32)
    together = np.asarray(compiled()(planes(squared), operations, magnitudes, signs))
    for i, name in enumerate(OPERATIONS[:count]):
        np.testing.assert_array_equal(together[i], ours(squared, (name, None), 9, 1)[i])


def test_nothing_is_exact(squared):
    np.testing.assert_array_equal(ours(squared, (None, None), 9, 1), planes(squared))


def test_draws_are_those_of_timm():
    """Operations are uniform, each applied with p; magnitudes are N(9, .5), clipped at 10."""
    drawn = jax.jit(
        functools.partial(random_operations.draw, batch=20_000, magnitude=9.0, std=0.5, p=0.5)
    )
    operations, magnitudes, signs = map(np.asarray, drawn(jax.random.key(0)))
    assert operations.shape == magnitudes.shape == signs.shape == (2, 20_000)
    for found in operations:
        counts = np.bincount(found, minlength=NONE + 1)
        assert stats.chisquare(counts, [20_000 / 30] * NONE + [10_000]).pvalue > 0.001
    both = (operations != NONE).all(axis=0)
    assert abs(both.mean() - 0.25) < 0.01  # the two are independent
    assert magnitudes.max() == 10 and abs((magnitudes == 10).mean() - stats.norm.sf(2)) < 0.004
    below = magnitudes[magnitudes < 10]
    truncated = stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert stats.kstest(below, truncated.cdf).pvalue > 0.001
    assert abs(signs.mean()) < 0.02 and set(np.unique(signs)) == {-1.0, 1.0}


def test_implementations_for_accelerators_equal_those_for_cpus():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (2, 3, 400)).astype(np.int32)
    expected = [[np.bincount(row, minlength=256) for row in image] for image in levels]
    for way in ("_counted", "_compared", "_multiplied"):
        np.testing.assert_array_equal(jax.jit(getattr(random_operations, way))(levels), expected)
    tables = rng.integers(0, 256, (2, 3, 256)).astype(np.float32)
    expected = np.take_along_axis(tables, levels, axis=2)
    for way in (random_operations._looked_up, random_operations._selected):
        np.testing.assert_array_equal(jax.jit(way)(tables, levels), expected)
    words = rng.integers(0, 2**24, (2, 5, 37)).astype(np.int32)
    shifts = rng.integers(0, 37, (2, 5)).astype(np.int32)
    expected = [[np.roll(*pair) for pair in zip(*rows, strict=True)]
                for rows in zip(words, -shifts, strict=True)]  # fmt: skip
    for way in (shears._indexed, shears._shifted):
        np.testing.assert_array_equal(jax.jit(way)(words, jnp.asarray(shifts)), expected)


def test_draws_equal_timms_transform():
    """timm's own class: fractions of images that are not changed, on an image that all change."""
    library("torch")
    auto_augment = library("timm.data.auto_augment")
    transform = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    names = {
        "AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert",
        "Rotate": "rotate", "PosterizeIncreasing": "posterize", "SolarizeIncreasing": "solarize",
        "SolarizeAdd": "solarize_add", "ColorIncreasing": "color",
        "ContrastIncreasing": "contrast", "BrightnessIncreasing": "brightness",
        "SharpnessIncreasing": "sharpness", "ShearX": "shear_x", "ShearY": "shear_y",
        "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
    }  # fmt: skip
    assert tuple(names[op.name] for op in transform.ops) == OPERATIONS
    assert transform.num_layers == random_operations.ROUNDS
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in transform.ops} == {(9, 0.5, 0.5)}


def test_operations_equal_timms(squared):
    library("torch")
    auto_augment = library("timm.data.auto_augment")
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    transform = auto_augment.rand_augment_transform("rand-m9-inc1", hparams)
    for op, name in zip(transform.ops, OPERATIONS, strict=True):
        op.prob = 1.0
        if name == "rotate":
            continue
        timm = [op(image) for image in squared]
        ways = [ours(squared, (name, None), 9, sign) for sign in (-1, 1)]
        for i, image in enumerate(timm):  # its sign is random
            expected = np.asarray(image, np.float32).swapaxes(1, 2)
            assert min(np.abs(way[i] - expected).max() for way in ways) <= 1, name
