"""Checks recipes and returns the problems in words."""

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from moco_jax.data.augment.recipes import CROP, ERASE, PARAMETERS, PROBABILITY, Parameter, Recipe


def check_recipe(recipe: Recipe, earlier: Sequence[Recipe] = ()) -> list[str]:
    """Returns the problems of a recipe, one string per problem; empty if the recipe is valid.

    Args:
      recipe: of a view.
      earlier: the recipes of the views before it; a crop `of_view` takes the crop of one of them.
    """
    if isinstance(recipe, str | Mapping) or not isinstance(recipe, Sequence):
        return [f"a recipe must be a sequence of mappings with a key 'op', got {recipe!r}"]
    problems = []
    names = [_name(step) for step in recipe]
    if names[:1] != [CROP]:
        problems.append(f"the first op must be {CROP!r}, got {names[0] if names else None!r}")
    for position, (name, step) in enumerate(zip(names, recipe, strict=True)):
        where = f"op {position} ({name!r})"
        if position and name == CROP:
            problems.append(f"{where}: a crop must be the first op")
        if name == ERASE and position < len(names) - 1:
            problems.append(f"{where}: it changes normalised images, so it must be the last op")
        found = _check_step(name, step)
        if name == CROP and not found:
            found = _check_crop(step, earlier)
        problems += [f"{where}: {problem}" for problem in found]
    return problems


def _check_crop(crop: Mapping[str, Any], earlier: Sequence[Recipe]) -> list[str]:
    """Returns the problems between the parameters of a crop, which are valid one by one."""
    owner = crop
    if "of_view" in crop:
        number = crop["of_view"]
        if number >= len(earlier):
            allowed = " or ".join(map(str, range(len(earlier)))) or "none, this is the first view"
            return [
                f"of_view must be the number of an earlier view; allowed: {allowed}, got {number}"
            ]
        if check_recipe(earlier[number], earlier[:number]):
            return []  # the problems of that view are reported with it
        owner = earlier[number][0]
        if "of_view" in owner:
            return [f"of_view must be a view with a crop of its own, got {number}, of_view there"]
    margin, shift = owner.get("margin", 0), crop.get("shift", 0)
    if shift <= margin:
        return []
    return [f"shift must be at most margin={margin:g} of the crop that it moves in, got {shift:g}"]


def _name(step: Any) -> Any:
    """Returns the name of the operation of a step, or None."""
    # `items` instead of Mapping: a ConfigDict is not a Mapping.
    return dict(step.items()).get("op") if hasattr(step, "items") else None


def _check_step(name: Any, step: Any) -> list[str]:
    """Returns the problems of one step of a recipe."""
    if not hasattr(step, "items"):
        return [f"must be a mapping with a key 'op', got {step!r}"]
    if name not in PARAMETERS:
        return [f"unknown op{_did_you_mean(name, PARAMETERS)}"]
    allowed = PARAMETERS[name] | ({} if name == CROP else {"p": PROBABILITY})
    given = {key: value for key, value in step.items() if key != "op"}
    problems = [
        f"unknown parameter {key!r}{_did_you_mean(key, allowed)}"
        for key in given
        if key not in allowed
    ]
    if name == CROP and "of_view" in given:
        problems += [
            f"parameter {key!r} is that of the crop of_view={given['of_view']!r}; leave it out"
            for key in given
            if key in allowed and key not in ("of_view", "shift")
        ]
    else:
        missing = [key for key in allowed if key not in given and not allowed[key].optional]
        problems += [f"parameter {key!r} is missing" for key in missing]
    for key in allowed:
        if key in given:
            problems += _check_value(key, given[key], allowed[key])
    return problems


def _check_value(key: str, value: Any, parameter: Parameter) -> list[str]:
    """Returns the problem of a parameter value in a list; empty if the value is valid."""
    low, high, is_range, positive, _, whole, names = parameter
    interval = f"{'(' if positive else '['}{low:g}, {high:g}]"
    if names:
        valid = value in names
        allowed = " or ".join(map(repr, names))
    elif whole:
        valid = _is_number(value) and isinstance(value, numbers.Integral) and int(value) >= low
        allowed = f"a whole number of at least {low:g}"
    elif is_range:
        pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
        valid = pair and low <= value[0] <= value[1] <= high and (value[0] > 0 or not positive)
        allowed = f"(lowest, highest) with lowest <= highest, both in {interval}"
    else:
        valid = _is_number(value) and low <= value <= high
        allowed = f"a number in {interval}"
    return [] if valid else [f"{key} must be {allowed}, got {value!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _did_you_mean(name: Any, known: Mapping[str, Any]) -> str:
    """Returns the end of a message about an unknown name: the closest name and all known names."""
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{guess}; allowed: {', '.join(known) or 'none'}"
