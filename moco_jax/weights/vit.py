"""Recognises a ViT from the shapes of its arrays, and what they do not show: heads, positions."""

import math
import re
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from moco_jax.models.backbones import make_backbone
from moco_jax.models.positions import sincos
from moco_jax.models.vit import NETWORKS
from moco_jax.weights.huggingface import EPSILON
from moco_jax.weights.names import Naming
from moco_jax.weights.torch_files import ARRAYS
from moco_jax.weights.variables import Arrays, listed

_SAME = 1e-5  # largest difference from the fixed positions; other libraries round otherwise
# The fixed positions, with whose they are and whether their first half depends on the column.
_FIXED = {"sincos": ("MoCo v3's", False), "sincos_mae": ("MAE's", True)}
_HEAD = 64  # values of an attention head of timm's ViTs, except the huge one

# Arrays that change the network, by the words in their names.
_REFUSED = {
    "a distillation token": r"(dist|distillation)_token$",
    "register tokens": r"(reg_token|register_tokens)$",
    "layer scale": r"(ls\d|layer_scale\d)\.(gamma|lambda1)$|gamma_\d$",
    "norms of queries and keys": r"(q|k)_norm\.",
    "a gated MLP (SwiGLU)": r"mlp\.(w12|w1|w2|w3|weights_in|fc1_g|fc1_x)\.",
    "relative positions": r"(relative_position|rel_pos)",
    "a norm before the blocks": r"^(norm_pre|pre_layrnorm)\.",
    "norms before and behind the pooling": r"^fc_norm\.",
    "attention pooling": r"^attn_pool\.",
    "norms inside the MLP": r"mlp\.(norm|ffn_ln)\.",
}


class Recognised(NamedTuple):
    """A ViT.

    Attributes:
      model: values of `config.model`.
      image_size: pixels of the images that its positions are for.
      arrays: without positions that are computed.
      notes: lines about what is not in the arrays.
    """

    model: dict[str, Any]
    image_size: int
    arrays: dict[str, Any]
    notes: tuple[str, ...]


def recognise(
    arrays: Arrays, naming: Naming, source: str, *, heads: int | None, v3: bool, mae: bool = False
) -> Recognised:
    """Returns the network of a ViT's arrays.

    Args:
      arrays: under the names of `naming`.
      source: where they come from, for messages.
      heads: number of attention heads; None takes that of the usual networks of this size.
      v3: whether MoCo v3's code wrote them.
      mae: whether they are those of a masked autoencoder.

    Raises:
      ValueError: if `moco_jax.models.vit` has no such network.
    """
    arrays, pool = _renamed_norm(arrays)
    _check_parts(arrays, source)
    conv = "stem_conv1" in naming.layers
    dim, patch = _token(arrays, naming, source), 16
    if not conv:
        patch = _patch(arrays, naming, source)
    depth = _depth(arrays, naming)
    table = naming.name(("backbone", "positions"))
    size, positions = _positions(arrays.get(table), patch, dim, f"{source}: {table}")
    heads, notes = _heads(heads, dim, v3 or positions == "sincos", source)
    if not positions:
        positions = "sincos_mae" if mae else "sincos"
        whose = _FIXED[positions][0]
        notes.append(f"no positions in the file: {whose} sines and cosines (positions {positions})")
    name = next((n for n, known in NETWORKS.items() if known["dim"] == dim), "vit_small")
    known = NETWORKS[name]
    model = {
        "name": name,
        "stem": "conv" if conv else "patch",
        "width": dim / known["dim"],
        "patch": patch,
        "heads": 0 if heads == known["heads"] else heads,
        "depth": 0 if depth == known["depth"] - conv else depth,
        "positions": positions,
        **pool,
    }
    kept = {name: x for name, x in arrays.items() if name != table or positions == "learned"}
    return Recognised(model, size, kept, tuple(notes))


def _renamed_norm(arrays: Arrays) -> tuple[Arrays, dict[str, str]]:
    """Returns the arrays with timm's norm of mean features under our name, and that `pool`."""
    if "fc_norm.weight" not in arrays or "norm.weight" in arrays:
        return arrays, {}
    return {re.sub(r"^fc_norm\.", "norm.", name): x for name, x in arrays.items()}, {"pool": "mean"}


def timm_arrays(arrays: dict[str, np.ndarray], pool: str) -> dict[str, np.ndarray]:
    """Returns a ViT's arrays under timm's names, with its name for the norm of mean features."""
    if pool == "cls":
        return arrays
    return {re.sub(r"^norm\.", "fc_norm.", name): x for name, x in arrays.items()}


def _check_parts(arrays: Arrays, source: str) -> None:
    for title, pattern in _REFUSED.items():
        found = [name for name in arrays if re.search(pattern, name)]
        if found:
            raise ValueError(
                f"{source} is a ViT with {title}, which is not supported: {listed(found)}"
            )


def _shape(arrays: Arrays, name: str) -> tuple[int, ...]:
    array = arrays.get(name)
    return tuple(array.shape) if isinstance(array, ARRAYS) else ()


def _token(arrays: Arrays, naming: Naming, source: str) -> int:
    """Returns the length of a token."""
    name = naming.name(("backbone", "cls_token"))
    shape = _shape(arrays, name)
    if len(shape) != 3 or shape[:2] != (1, 1) or not shape[2] or shape[2] % 4:
        found = f"of shape {shape}" if name in arrays else "absent"
        raise ValueError(
            f"{source}: {name} is {found}; a ViT needs a class token [1, 1, d], d a multiple of 4"
        )
    return shape[2]


def _patch(arrays: Arrays, naming: Naming, source: str) -> int:
    """Returns the side of a patch in pixels."""
    name = f"{naming.name(('backbone', 'patch_embed'))}.weight"
    shape = _shape(arrays, name)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[2]:
        raise ValueError(f"{source}: {name} has shape {shape}; allowed: [d, 3, p, p]")
    return shape[2]


def _depth(arrays: Arrays, naming: Naming) -> int:
    """Returns the number of blocks: those from the first one without a gap."""
    pattern = re.escape(naming.block).replace(r"\{\}", r"(\d+)")
    numbers = {int(m[1]) for name in arrays if (m := re.match(pattern, name)) and len(m[1]) < 6}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def _positions(table: Any, patch: int, dim: int, what: str) -> tuple[int, str]:
    """Returns the image size, and the kind of the table's positions; "" without a table."""
    if table is None:
        return 224 // patch * patch or patch, ""
    shape = tuple(table.shape)
    side = math.isqrt(max(0, shape[1] - 1)) if len(shape) == 3 else 0
    if shape != (1, 1 + side**2, dim) or not side:
        raise ValueError(
            f"{what} has shape {shape}; allowed: [1, 1 + n, {dim}] for the class token and n "
            "patches of a square image"
        )
    return side * patch, kind_of(table, side)


def kind_of(table: Any, side: int) -> str:
    """Returns the `model.positions` of a table [1, 1 + side * side, dim].

    Both kinds of fixed positions are the same for a single patch; then they are MoCo v3's.
    """
    return next((kind for kind in _FIXED if is_fixed(table, side, kind)), "learned")


def is_fixed(table: Any, side: int, kind: str) -> bool:
    """Returns whether a table [1, 1 + side * side, dim] has the fixed positions of a kind."""
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f":
        return False
    return bool(np.abs(table - fixed_positions(side, table.shape[-1], kind)).max() <= _SAME)


def fixed_positions(side: int, dim: int, kind: str) -> np.ndarray:
    """Returns the fixed positions [1, 1 + side * side, dim] of the class token and the patches."""
    patches = np.asarray(sincos(side, side, dim, columns_first=_FIXED[kind][1]), np.float32)
    return np.concatenate([np.zeros((1, dim), np.float32), patches])[None]


def with_positions(variables: dict[str, Any], config: ConfigDict) -> dict[str, Any]:
    """Returns an encoder's variables, with fixed positions as arrays, as other projects have.

    A decoder gets those of its backbone's orientation.
    """
    if config.model.name not in NETWORKS:
        return variables
    network: Any = make_backbone(config.model)
    side, params = config.data.image_size // network.patch, dict(variables["params"])
    if network.positions in _FIXED:
        table = fixed_positions(side, network.dim, network.positions)
        params["backbone"] = params["backbone"] | {"positions": table}
    if "decoder" in params:
        table = fixed_positions(side, config.decoder.dim, decoder_positions(network.positions))
        params["decoder"] = params["decoder"] | {"positions": table}
    return variables | {"params": params}


def decoder_positions(backbone: str) -> str:
    """Returns the kind of a decoder's positions, given the `model.positions` of its backbone."""
    return backbone if backbone in _FIXED else "sincos"


def _heads(given: int | None, dim: int, v3: bool, source: str) -> tuple[int, list[str]]:
    """Returns the number of heads, and a line if it is a guess."""
    notes, heads = [], given
    if heads is None:
        usual = {known["dim"]: known["heads"] for known in NETWORKS.values()}
        heads, whose = dim // _HEAD, f"{_HEAD} values a head"
        if dim == NETWORKS["vit_huge"]["dim"]:
            heads, whose = usual[dim], "timm's"
        elif v3 and dim in usual:
            heads, whose = usual[dim], "MoCo v3's"
        elif dim % _HEAD:
            raise ValueError(
                f"{source}: the number of attention heads is not in the file, and tokens of {dim} "
                "values have no usual one; give it to a run as --config.model.heads=..., to python "
                "-m moco_jax.convert as --heads=..."
            )
        flags = "--heads=... or --config.model.heads=..."
        notes.append(f"heads {heads}: {whose}; the file does not contain it, {flags} sets it")
    if dim % heads:
        raise ValueError(f"{source}: {heads} attention heads do not divide tokens of {dim} values")
    return heads, notes


def epsilon_notes(epsilon: float) -> tuple[str, ...]:
    """Returns a line if the epsilon of the layer norms is not ours."""
    if epsilon == EPSILON:
        return ()
    return (
        f"layer_norm_eps {epsilon:g} in config.json, {EPSILON:g} here: features of tokens with a "
        "variance near these differ",
    )
