"""Converts between Flax variables and arrays under another project's names, with torch's axes."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax import text
from moco_jax.models.encoder import make_encoder
from moco_jax.weights.names import COUNTER, Naming, Path
from moco_jax.weights.torch_files import Unreadable

Arrays = Mapping[str, np.ndarray]

# By the number of axes: convolutions [O, I, kh, kw] <-> [kh, kw, I, O], weights [O, I] <-> [I, O].
# The class token and the positions have three.
_AXES_TO_FLAX = {4: (2, 3, 1, 0), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}
_AXES_TO_TORCH = {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}
_MOST_LISTED = 6
_LONGEST = 120  # characters of a name that are shown


def template(
    config: ConfigDict, *, head: bool, decoder: bool = False
) -> dict[Path, jax.ShapeDtypeStruct]:
    """Returns the shapes of the encoder's arrays by path, such as ("params", "backbone", ...).

    Args:
      head: whether the head and the predictor are among them.
      decoder: the same of the decoder.
    """
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((config.bn_groups, size, size, 3), config.dtype)
    variables = jax.eval_shape(make_encoder(config).init, jax.random.key(0), images)
    flat: Any = flax.traverse_util.flatten_dict(variables)
    parts = {"backbone": True, "head": head, "predictor": head, "decoder": decoder}
    return {path: shape for path, shape in flat.items() if parts[path[1]]}


def to_flax(
    arrays: Arrays, naming: Naming, config: ConfigDict, shapes: Mapping[Path, Any], source: str
) -> dict[str, Any]:
    """Returns nested Flax variables, float32.

    Args:
      arrays: by the project's names; torch's batch counters are ignored.
      shapes: the Flax arrays to return, from `template`.
      source: where the arrays come from, for messages.

    Raises:
      ValueError: names the arrays that are missing, unexpected, of the wrong shape or dtype, and
        those with impossible values.
    """
    names = _names(naming, config.model.head, shapes)
    if problem := mismatch(arrays, naming, config.model.head, shapes):
        raise ValueError(f"{source} does not match {config.model.name}: {problem}")
    check_values({name: arrays[name] for name in names.values()}, source)
    flat: Any = {}
    for path, name in names.items():
        array = arrays[name].transpose(_AXES_TO_FLAX[arrays[name].ndim])
        flat[path] = np.ascontiguousarray(array, dtype=np.float32)
    return flax.traverse_util.unflatten_dict(flat)


def mismatch(arrays: Arrays, naming: Naming, head: str, shapes: Mapping[Path, Any]) -> str:
    """Returns which arrays are missing, unexpected or of the wrong shape; "" if none is.

    Args:
      head: the `model.head` of the encoder.
      arrays, naming, shapes: those of `to_flax`.
    """
    names = _names(naming, head, shapes)
    given = {name for name in arrays if not name.endswith(f".{COUNTER}")}
    needed = set(names.values())
    odd = {"missing": needed - given, "unexpected": given - needed}
    problems = [f"{what} {listed(which)}" for what, which in odd.items() if which]
    if problems:
        return "; ".join(problems)
    expected = {
        name: tuple(shapes[path].shape[axis] for axis in _AXES_TO_TORCH[shapes[path].ndim])
        for path, name in names.items()
    }
    return listed(
        f"{name} has shape {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if arrays[name].shape != shape
    )


def _names(naming: Naming, head: str, shapes: Iterable[Path]) -> dict[Path, str]:
    return {path: naming.array(path[1:], head) for path in shapes}


def check_values(arrays: Mapping[str, Any], source: str) -> None:
    """Checks that arrays are floating-point numbers, not empty and finite; variances not negative.

    Args:
      arrays: by names that end in the project's or our name of the leaf.
      source: where the arrays come from, for messages.

    Raises:
      ValueError: names the arrays and what is wrong.
    """
    odd = {name: _oddity(array) for name, array in arrays.items()}
    if any(odd.values()):
        which = listed(f"{name} ({reason})" for name, reason in odd.items() if reason)
        raise ValueError(f"{source}: weights must be floating-point numbers, got {which}")
    infinite = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if infinite:
        raise ValueError(
            f"{source}: {len(infinite)} of {len(arrays)} arrays contain NaN or infinity: "
            f"{listed(infinite)}; the file is damaged, or the training diverged"
        )
    variances = [name for name in arrays if name.endswith((".running_var", "/var"))]
    negative = [name for name in variances if np.min(arrays[name]) < 0]
    if negative:
        raise ValueError(f"{source}: variances must not be negative: {listed(negative)}")


def _oddity(array: Any) -> str:
    """Returns why an array can't be weights; "" if it can."""
    if isinstance(array, Unreadable):
        return array.reason
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"of dtype {array.dtype}"
    return "" if array.size else "without values"


def to_torch(
    variables: dict[str, Any], naming: Naming, config: ConfigDict
) -> dict[str, np.ndarray]:
    """Returns all arrays of the Flax variables by the project's names; batch counters are 0."""
    flat: Any = flax.traverse_util.flatten_dict(variables)
    arrays = {}
    for path, array in flat.items():
        name = naming.array(path[1:], config.model.head)
        arrays[name] = np.ascontiguousarray(np.transpose(array, _AXES_TO_TORCH[np.ndim(array)]))
        if naming.counts_batches and path[-1] == "mean":
            arrays[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return arrays


def listed(names: Iterable[str]) -> str:
    """Returns the first six names in order and the number of the others."""
    ordered = [text.line(name) for name in sorted(names)]
    ordered = [n if len(n) <= _LONGEST else f"{n[:_LONGEST]}..." for n in ordered]
    more = f" and {len(ordered) - _MOST_LISTED} more" if len(ordered) > _MOST_LISTED else ""
    return ", ".join(ordered[:_MOST_LISTED]) + more
