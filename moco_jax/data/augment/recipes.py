"""Augmentation recipes of the papers, and the parameters of each operation.

A recipe is a sequence of mappings. Each mapping has the name of an operation under `op`, and the
parameters of the operation. The first operation is the crop. `erase` changes normalised images, so
it is the last one.

A crop with `of_view=0` takes the crop of the first view. Its own parameter is only `shift`, which
moves the part of the crop that the view shows. `crop.random_crops` documents the parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Recipe = Sequence[Mapping[str, Any]]

CROP = "random_resized_crop"
ERASE = "erase"
BILINEAR, BICUBIC = "bilinear", "bicubic"
_INFINITY = float("inf")


class Parameter(NamedTuple):
    """The allowed values of a parameter."""

    low: float
    high: float
    is_range: bool = False  # the value is a pair (lowest, highest) instead of a number
    positive: bool = False  # 0 is excluded; only for ranges
    optional: bool = False  # a recipe may omit the parameter
    whole: bool = False  # only whole numbers
    names: tuple[str, ...] = ()  # the value is one of these instead of a number


_STRENGTHS = ("brightness", "contrast", "saturation")
# The parameters of each operation.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    CROP: {
        "scale": Parameter(0.0, 1.0, is_range=True, positive=True),
        "ratio": Parameter(0.0, _INFINITY, is_range=True, positive=True),
        "interpolation": Parameter(0.0, 0.0, optional=True, names=(BILINEAR, BICUBIC)),
        "flip": Parameter(0.0, 1.0, optional=True),
        "margin": Parameter(0.0, _INFINITY, optional=True, whole=True),
        "shift": Parameter(0.0, _INFINITY, optional=True, whole=True),
        "of_view": Parameter(0.0, _INFINITY, optional=True, whole=True),
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


def mae(min_scale: float = 0.2) -> tuple[dict[str, Any], ...]:
    """Returns MAE's recipe (He et al. 2022; mae `main_pretrain.py`): bicubic crop and flip."""
    return (_crop(min_scale, BICUBIC), {"op": "flip", "p": 0.5})


def cmae_query(min_scale: float = 0.2, margin: int = 32) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of CMAE's masked view (Huang et al. 2022; CMAE `cmae_dataset.py`).

    The crop has `margin` pixels more than the view, 32 for views of 224 pixels. The view is its top
    left part.
    """
    return ({**_crop(min_scale, BICUBIC), "flip": 0.5, "margin": margin},)


def cmae_key(shift: int = 31) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of CMAE's second view, the keys'; the first is `cmae_query`.

    It shows the same crop, moved by up to `shift` pixels in each direction, in other colours.
    """
    return (
        {"op": CROP, "of_view": 0, "shift": shift},
        _jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
        _blur(p=0.5),
    )


def cifar(min_scale: float = 0.08) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of both views of MoCo's CIFAR-10 demo (32 x 32 images, no blur)."""
    return (
        _crop(min_scale),
        {"op": "flip", "p": 0.5},
        _jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
    )


def supervised(
    min_scale: float = 0.08, interpolation: str = BILINEAR
) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of supervised training (moco `main_lincls.py`): crop and flip.

    MAE's linear protocol crops with interpolation="bicubic".
    """
    return (_crop(min_scale, interpolation), {"op": "flip", "p": 0.5})


def deit(min_scale: float = 0.08, interpolation: str = BILINEAR) -> tuple[dict[str, Any], ...]:
    """Returns DeiT's recipe of supervised training (Touvron et al. 2021; deit `main.py`).

    It is timm's `rand-m9-mstd0.5-inc1` and random erasing. Departure: movements are bilinear, and
    so are crops by default; DeiT's are bicubic.
    """
    return (
        _crop(min_scale, interpolation),
        {"op": "flip", "p": 0.5},
        {"op": "rand_augment", "magnitude": 9.0, "std": 0.5, "p": 0.5},
        {"op": ERASE, "p": 0.25},
    )


def _crop(min_scale: float, interpolation: str = BILINEAR) -> dict[str, Any]:
    crop = {"op": CROP, "scale": (min_scale, 1.0), "ratio": (3 / 4, 4 / 3)}
    return crop if interpolation == BILINEAR else {**crop, "interpolation": interpolation}


def _jitter(*strengths: float, p: float) -> dict[str, Any]:
    values = zip((*_STRENGTHS, "hue"), strengths, strict=True)
    return {"op": "color_jitter", **dict(values), "p": p}


def _blur(*, p: float) -> dict[str, Any]:
    return {"op": "blur", "sigma": (0.1, 2.0), "p": p}
