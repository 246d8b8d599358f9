"""Random erasing: its boxes have timm's distribution."""

import functools
import math
import random

import jax
import numpy as np
from scipy import stats

from moco_jax.data.augment import erasing
from tests.weights.networks import library

SIZE, COUNT = 24, 4000


def reference(rng: random.Random) -> tuple[int, int, int, int]:
    """Returns a box of timm's algorithm: top, left, height, width."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * SIZE * SIZE
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < SIZE and width < SIZE:
            return rng.randint(0, SIZE - height), rng.randint(0, SIZE - width), height, width
    return 0, 0, 0, 0


@functools.cache
def drawn(p: float):
    draw = functools.partial(erasing.boxes, batch=COUNT, size=SIZE, p=p)
    return np.asarray(jax.jit(draw)(jax.random.key(0)))


def test_boxes_have_the_distribution_of_timm():
    rng = random.Random(0)
    expected = np.array([reference(rng) for _ in range(COUNT)])
    for ours, theirs in zip(drawn(1.0).T, expected.T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.001
    for one, other in ((0, 2), (1, 3), (2, 3)):
        ours = np.corrcoef(drawn(1.0)[:, one], drawn(1.0)[:, other])[0, 1]
        theirs = np.corrcoef(expected[:, one], expected[:, other])[0, 1]
        assert abs(ours - theirs) < 0.1


def test_boxes_lie_inside():
    top, left, height, width = drawn(1.0).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= SIZE).all() and (left + width <= SIZE).all()
    assert (top + height == SIZE).any() and (left == 0).any()


def test_p_is_the_fraction_of_erased_images():
    assert abs((drawn(0.25)[:, 2] > 0).mean() - 0.25) < 3 * math.sqrt(0.25 * 0.75 / COUNT)
    images = np.zeros((2, SIZE, SIZE, 3), np.float32)
    assert erasing.erase(jax.random.key(0), images, p=0.0) is images


def test_areas_equal_those_of_timms_class():
    torch = library("torch")
    timm = library("timm.data.random_erasing")
    eraser = timm.RandomErasing(probability=1.0, mode="pixel", device="cpu")
    erased = [int((eraser(torch.zeros(1, SIZE, SIZE)) != 0).sum()) for _ in range(COUNT // 4)]
    areas = drawn(1.0)[:, 2] * drawn(1.0)[:, 3]
    assert stats.ks_2samp(erased, areas).pvalue > 0.001
