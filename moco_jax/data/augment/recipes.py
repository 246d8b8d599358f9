"""What makes a view, as data: the papers' augmentations and the check of a recipe.

A recipe is a sequence of mappings, each with the name of its operation under `op` and the
operation's parameters beside it. The first is the crop.
"""

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

Recipe = Sequence[Mapping[str, Any]]

CROP = "random_resized_crop"


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

    The paper's own runs use min_scale .2 for ResNet-50 and .08 for ViT.
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
    """Returns the recipe of both views of MoCo's CIFAR-10 demo: 32 x 32, no blur."""
    return (
        _crop(min_scale),
        {"op": "flip", "p": 0.5},
        _jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        {"op": "grayscale", "p": 0.2},
    )


def supervised(min_scale: float = 0.08) -> tuple[dict[str, Any], ...]:
    """Returns the recipe of supervised training (moco `main_lincls.py`): crop and flip."""
    return (_crop(min_scale), {"op": "flip", "p": 0.5})


# The recipes of the two views by name.
RECIPES = {
    "v1": (v1, v1),
    "v2": (v2, v2),
    "v3": (v3_first, v3_second),
    "cifar": (cifar, cifar),
}


def _crop(min_scale: float) -> dict[str, Any]:
    return {"op": CROP, "scale": (min_scale, 1.0), "ratio": (3 / 4, 4 / 3)}


def _jitter(
    brightness: float, contrast: float, saturation: float, hue: float, *, p: float
) -> dict[str, Any]:
    return {
        "op": "color_jitter",
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "p": p,
    }


def _blur(*, p: float) -> dict[str, Any]:
    return {"op": "blur", "sigma": (0.1, 2.0), "p": p}


_INFINITY = float("inf")
# What each parameter may be: 'number' or 'range' (lowest, highest), and its bounds.
_STRENGTH = ("number", 0.0, _INFINITY)
_PARAMETERS: dict[str, dict[str, tuple[str, float, float]]] = {
    CROP: {"scale": ("range", 0.0, 1.0), "ratio": ("range", 0.0, _INFINITY)},
    "color_jitter": {
        "brightness": _STRENGTH,
        "contrast": _STRENGTH,
        "saturation": _STRENGTH,
        "hue": ("number", 0.0, 0.5),
    },
    "grayscale": {},
    "blur": {"sigma": ("range", 0.0, _INFINITY)},
    "solarize": {"threshold": ("number", 0.0, 256.0)},
    "flip": {},
}
# A range that must stay above 0: neither an empty window nor an aspect of 0 means anything.
_POSITIVE = ("scale", "ratio")
_OPTIONAL = ("p", "threshold")


def check_recipe(recipe: Recipe) -> list[str]:
    """Returns what is wrong with a recipe, one sentence a problem; an empty list when it is fine.

    Args:
      recipe: a sequence of mappings (dicts or `ConfigDict`s), such as `v2()`.
    """
    if isinstance(recipe, str | Mapping) or not isinstance(recipe, Sequence):
        return [f"a recipe is a sequence of mappings with a key 'op', got {recipe!r}"]
    problems = []
    names = [_name(step) for step in recipe]
    if names[:1] != [CROP]:
        problems.append(f"the first op must be {CROP!r}, got {names[0] if names else None!r}")
    for position, (name, step) in enumerate(zip(names, recipe, strict=True)):
        where = f"op {position} ({name!r})"
        if position and name == CROP:
            problems.append(f"{where}: a crop can only come first")
        problems += [f"{where}: {problem}" for problem in _check_step(name, step)]
    return problems


def _name(step: Any) -> Any:
    """Returns the name of a recipe's step, None where there is none."""
    # `items` rather than Mapping: a ConfigDict is none.
    return dict(step.items()).get("op") if hasattr(step, "items") else None


def _check_step(name: Any, step: Any) -> list[str]:
    """Returns the problems of one step of a recipe."""
    if not hasattr(step, "items"):
        return [f"must be a mapping with a key 'op', got {step!r}"]
    if name not in _PARAMETERS:
        return [f"unknown op{_did_you_mean(name, _PARAMETERS)}"]
    allowed = dict(_PARAMETERS[name])
    if name != CROP:
        allowed["p"] = ("number", 0.0, 1.0)
    given = {key: value for key, value in step.items() if key != "op"}
    problems = [
        f"unknown parameter {key!r}{_did_you_mean(key, allowed)}"
        for key in given
        if key not in allowed
    ]
    missing = [key for key in allowed if key not in given and key not in _OPTIONAL]
    problems += [f"parameter {key!r} is missing" for key in missing]
    for key in allowed:
        if key in given:
            problems += _check_value(key, given[key], *allowed[key])
    return problems


def _check_value(key: str, value: Any, kind: str, low: float, high: float) -> list[str]:
    """Returns the problem of one parameter's value, if any, in a list."""
    if kind == "number":
        if not _is_number(value) or not low <= value <= high:
            return [f"{key} must be a number in [{low:g}, {high:g}], got {value!r}"]
        return []
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
    opening = "(" if key in _POSITIVE else "["
    inside = pair and low <= value[0] <= value[1] <= high
    if not inside or (key in _POSITIVE and value[0] <= 0):
        return [
            f"{key} must be (lowest, highest) with lowest <= highest, "
            f"both in {opening}{low:g}, {high:g}], got {value!r}"
        ]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _did_you_mean(name: Any, known: Mapping[str, Any]) -> str:
    """Returns the end of an unknown name's sentence: the likeliest name and all known ones."""
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{guess}; known: {', '.join(known) or 'none'}"
