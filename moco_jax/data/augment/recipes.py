"""Augmentation recipes of the papers, and the parameters of each operation.

A recipe is a sequence of mappings. Each mapping has the name of an operation under `op`, and the
parameters of the operation. The first operation is the crop. `erase` changes normalised images, so
it is the last one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Recipe = Sequence[Mapping[str, Any]]

CROP = "random_resized_crop"
ERASE = "erase"
_INFINITY = float("inf")


class Parameter(NamedTuple):
    """The allowed values of a parameter."""

    low: float
    high: float
    is_range: bool = False  # the value is a pair (lowest, highest) instead of a number
    positive: bool = False  # 0 is excluded; only for ranges
    optional: bool = False  # a recipe may omit the parameter


_STRENGTHS = ("brightness", "contrast", "saturation")
# The parameters of each operation.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    CROP: {
        "scale": Parameter(0.0, 1.0, is_range=True, positive=True),
        "ratio": Parameter(0.0, _INFINITY, is_range=True, positive=True),
    },
    "color_jitter": {
        **dict.fromkeys(_STRENGTHS, Parameter(0.0, _INFINITY)),
        "hue": Parameter(0.0, 0.5),
    },
    "grayscale": {},
    "blur": {"sigma": Parameter(0.0, _INFINITY, is_range=True)},
    "solarize": {"threshold": Parameter(0.0, 256.0, optional=True)},
    "flip": {},
    # The colour outside moved images is the mean of pixels, `data.mean`.
    "rand_augment": {
        "magnitude": Parameter(0.0, 10.0),
        "std": Parameter(0.0, _INFINITY, optional=True),
    },
    ERASE: {},
}
# The parameter `p` of every operation except the crop; of rand_augment, for each of its two.
PROBABILITY = Parameter(0.0, 1.0, optional=True)


def v1(min_scale: float = 0.2) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of both views of MoCo v1 (moco `main_moco.py` without `--aug-plus`)."""
    return (
        _crop(min_scale),
        {"op": "grayscale", "p": 0.2},
        _jitter(0.4, 0.4, 0.4, 0.4, p=1.0),
        {"op": "flip", "p": 0.5},
    )


def v2(min_scale: float = 0.2) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of both views of MoCo v2 (moco `main_moco.py --aug-plus`)."""
    return (
        _crop(min_scale),
        _jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
        _blur(p=0.5),
        {"op": "flip", "p": 0.5},
    )


def v3_first(min_scale: float = 0.2) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of MoCo v3's first view (moco-v3 `main_moco.py`, `augmentation1`).

    The paper uses min_scale .2 for ResNet-50 and .08 for ViT.
    """
    return (
        _crop(min_scale),
        _jitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
        _blur(p=1.0),
        {"op": "flip", "p": 0.5},
    )


def v3_second(min_scale: float = 0.2) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of MoCo v3's second view (moco-v3 `main_moco.py`, `augmentation2`)."""
    return (
        _crop(min_scale),
        _jitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
        _blur(p=0.1),
        {"op": "solarize", "threshold": 128, "p": 0.2},
        {"op": "flip", "p": 0.5},
    )


def cifar(min_scale: float = 0.08) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of both views of MoCo's CIFAR-10 demo (32 x 32 images, no blur)."""
    return (
        _crop(min_scale),
        {"op": "flip", "p": 0.5},
        _jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
    )


def supervised(min_scale: float = 0.08) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of supervised training (moco `main_lincls.py`): crop and flip."""
    return (_crop(min_scale), {"op": "flip", "p": 0.5})


def deit(min_scale: float = 0.08) -> tuple[dict[str, Any], ...]:
    """Returns DeiT's recipe of supervised training (Touvron et al. 2021; deit `main.py`).

    It is timm's `rand-m9-mstd0.5-inc1` and random erasing. Departure: crops and movements are
    bilinear; DeiT's are bicubic.
    """
    return (
        _crop(min_scale),
        {"op": "flip", "p": 0.5},
        {"op": "rand_augment", "magnitude": 9.0, "std": 0.5, "p": 0.5},
        {"op": ERASE, "p": 0.25},
    )


def _crop(min_scale: float) -> dict[str, Any]:
    return {"op": CROP, "scale": (min_scale, 1.0), "ratio": (3 / 4, 4 / 3)}


def _jitter(*strengths: float, p: float) -> dict[str, Any]:
    values = zip((*_STRENGTHS, "hue"), strengths, strict=True)
    return {"op": "color_jitter", **dict(values), "p": p}


def _blur(*, p: float) -> dict[str, Any]:
    return {"op": "blur", "sigma": (0.1, 2.0), "p": p}
