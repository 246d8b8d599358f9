"""Arrays by another project's names, as variables of ours, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.convert.names import COUNTER, LEAVES, Layout, Path, head_module
from moco_jax.models.encoder import make_encoder

Arrays = Mapping[str, np.ndarray]

# Axes of a convolution [O, I, kh, kw] as [kh, kw, I, O], of a linear weight [O, I] as [I, O].
_TO_OURS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_TO_THEIRS = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_TOLD = 6  # names in a message


def template(config: ConfigDict, *, head: bool) -> dict[Path, jax.ShapeDtypeStruct]:
    """Returns the encoder's arrays, by path, as shapes: `("params", "backbone", ...)`."""
    images = jnp.zeros((config.bn_groups, 32, 32, 3), config.dtype)
    variables = jax.eval_shape(make_encoder(config).init, jax.random.key(0), images)
    flat: Any = flax.traverse_util.flatten_dict(variables)
    return {path: shape for path, shape in flat.items() if head or path[1] == "backbone"}


def to_ours(
    arrays: Arrays, layout: Layout, config: ConfigDict, shapes: Mapping[Path, Any], source: str
) -> dict[str, Any]:
    """Returns nested variables of a network's arrays.

    Args:
      arrays: by their names; torch's counters of batches are left out.
      layout: of these names.
      config: of the network.
      shapes: which arrays of ours are wanted, as `template` has them.
      source: for messages.

    Raises:
      ValueError: names arrays that are missing, left over, or of another shape.
    """
    names = {path: _name(path, layout, config) for path in shapes}
    given = {name for name in arrays if not name.endswith(f".{COUNTER}")}
    missing, left_over = set(names.values()) - given, given - set(names.values())
    if missing or left_over:
        told = [f"lacks {listed(missing)}"] if missing else []
        told += [f"has {listed(left_over)} left over"] if left_over else []
        raise ValueError(f"{source} is no {config.model.name} of this layout: {'; '.join(told)}")
    wanted = {name: _theirs(shapes[path].shape) for path, name in names.items()}
    wrong = [
        f"{name} is {arrays[name].shape} and should be {shape}"
        for name, shape in wanted.items()
        if arrays[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"{source} is no {config.model.name}: {listed(wrong)}")
    flat: Any = {}
    for path, name in names.items():
        array = arrays[name].transpose(_TO_OURS[arrays[name].ndim])
        flat[path] = np.ascontiguousarray(array, dtype=np.float32)
    return flax.traverse_util.unflatten_dict(flat)


def to_theirs(
    variables: dict[str, Any], layout: Layout, config: ConfigDict
) -> dict[str, np.ndarray]:
    """Returns all arrays of the variables by their names, batch norms' counters at 0."""
    flat: Any = flax.traverse_util.flatten_dict(variables)
    arrays = {}
    for path, array in flat.items():
        name = _name(path, layout, config)
        arrays[name] = np.ascontiguousarray(np.transpose(array, _TO_THEIRS[np.ndim(array)]))
        if layout.counts_batches and path[-1] == "mean":
            arrays[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return arrays


def _theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that an array of ours has there."""
    return tuple(shape[axis] for axis in _TO_THEIRS[len(shape)])


def _name(path: Path, layout: Layout, config: ConfigDict) -> str:
    """Returns their name of an array such as ("params", "backbone", "stem_conv", "kernel")."""
    _, *module, leaf = path
    if module[0] == "head":
        return f"{head_module(config.model.head, module[1])}.{LEAVES[leaf]}"
    return f"{layout.name(tuple(module))}.{LEAVES[leaf]}"


def listed(names: Iterable[str]) -> str:
    """Returns the first few names and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _TOLD} more" if len(ordered) > _TOLD else ""
    return ", ".join(ordered[:_TOLD]) + more
