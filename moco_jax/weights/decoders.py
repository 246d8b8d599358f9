"""Recognises the decoder of a masked autoencoder beside a ViT, in MAE's code and Hugging Face's."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.models.decoder import Decoder
from moco_jax.models.vit import NETWORKS
from moco_jax.weights import huggingface, variables, vit
from moco_jax.weights.names import NAMINGS, Naming, Path
from moco_jax.weights.search import Found
from moco_jax.weights.torch_files import ARRAYS
from moco_jax.weights.variables import Arrays

FLAGS = ("mask_ratio", "norm_pix_loss")  # of MAE's code that Hugging Face's config.json has too
_HEADS = 16  # of each decoder in MAE's code


class Recognised(NamedTuple):
    """A decoder, or nothing.

    Attributes:
      values: of the config, by key.
      arrays: without positions, which are computed.
      notes: lines about what is not in the arrays, or why there is no decoder.
    """

    values: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


def find(found: Found, arrays: Arrays) -> dict[str, Any]:
    """Returns the arrays of the decoder beside an encoder by its naming's names; {} without one.

    A mask token alone is no decoder: the encoders of DINOv2 and iBOT have one.

    Args:
      arrays: all of the file.
    """
    naming, base = NAMINGS[found.naming], found.prefix
    if not naming.decoder:
        return {}
    theirs = found.naming == "vit_huggingface"
    if theirs:  # the decoder is beside the encoder's `vit.`
        base = base.removesuffix("vit.")
    own = {k.removeprefix(base): x for k, x in arrays.items() if k.startswith(base)}
    if theirs:
        own = huggingface.fused(own)
    block = naming.decoder_block.partition("{")[0]
    starts = (*(f"{layer}." for layer in naming.decoder.values()), block)
    own = {k: x for k, x in own.items() if k.startswith(starts) or k in naming.decoder.values()}
    return own if all(_shape(own, naming, layer) for layer in ("embed", "pixels")) else {}


def recognise(
    arrays: Arrays,
    naming: Naming,
    model: Mapping[str, Any],
    image_size: int,
    about: Mapping[str, Any],
    given: ConfigDict | None,
) -> Recognised:
    """Returns the decoder of the arrays of `find`; without one, a line says why.

    Args:
      naming: of the encoder.
      model: the recognised values of `config.model`.
      image_size: pixels.
      about: what the file contains besides arrays, under the names of Hugging Face's config.json.
      given: the config, whose values replace those that are not in the file.
    """
    dim = _shape(arrays, naming, "embed")[0]
    block = re.escape(naming.decoder_block).replace(r"\{\}", r"(\d+)")
    numbers = {int(m[1]) for name in arrays if (m := re.match(block, name)) and len(m[1]) < 6}
    depth = next(n for n in range(len(numbers) + 1) if n not in numbers)
    heads: Any = about.get("decoder_num_attention_heads")
    notes = []
    if heads is None and given is not None:
        heads = given.decoder.heads
    elif heads is None:
        heads = _HEADS
        notes.append(
            f"decoder heads {heads}: MAE's; the file does not contain it, --config=... "
            "--config.decoder.heads=... sets it"
        )
    table = naming.decoder["positions"]
    kept = {name: x for name, x in arrays.items() if name != table}
    network = Decoder(dim=dim, depth=depth, heads=heads, values=3 * model["patch"] ** 2)
    if not depth:
        problem = f"it has no {naming.decoder_block.format(0)}*"
    elif dim % 4 or dim % heads:
        problem = f"its tokens of {dim} values can't have {heads} attention heads"
    else:
        features = round(NETWORKS[model["name"]]["dim"] * model["width"])
        problem = variables.mismatch(kept, naming, "", _shapes(network, features))
    side = image_size // model["patch"]
    if not problem and not _same_positions(arrays.get(table), side, dim, model["positions"]):
        problem = f"{table} has other positions than the encoder's sines and cosines"
    if problem:
        return Recognised(notes=(f"the decoder is left out: {problem}",))
    values = {"decoder.dim": dim, "decoder.depth": depth, "decoder.heads": heads}
    if given is None:
        values |= {"pretext": "masked"} | _mask(about)
        if "mask.normalize_pixels" not in values:
            notes.append(
                "normalised pixels: MAE's best runs have them; the file does not say, --config=... "
                "--config.mask.normalize_pixels=False changes it"
            )
    return Recognised(values, kept, tuple(notes))


def _shapes(network: Decoder, features: int) -> dict[Path, Any]:
    """Returns the shapes of a decoder's arrays by path, for encoder tokens of `features` values."""
    tokens, order = jnp.zeros((1, 2, features)), jnp.zeros((1, 1), jnp.int32)
    init = functools.partial(network.init, rows=1, columns=1, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, order)["params"]
    flat: Any = flax.traverse_util.flatten_dict({"params": {"decoder": shapes}})
    return flat


def _mask(about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of `config.mask` that a file contains."""
    ratio, normalizes = about.get("mask_ratio"), about.get("norm_pix_loss")
    values: dict[str, Any] = {}
    if isinstance(ratio, float) and 0 < ratio < 1:
        values["mask.fraction"] = ratio
    if isinstance(normalizes, bool):
        values["mask.normalize_pixels"] = normalizes
    return values


def _same_positions(table: Any, side: int, dim: int, positions: str) -> bool:
    """Returns whether a table, if there is one, has the positions that our decoder computes."""
    if table is None:
        return True
    kind = vit.decoder_positions(positions)
    return tuple(table.shape) == (1, 1 + side**2, dim) and vit.is_fixed(table, side, kind)


def _shape(arrays: Arrays, naming: Naming, layer: str) -> tuple[int, ...]:
    """Returns the shape of a linear layer's weights, () if it has none."""
    array = arrays.get(f"{naming.decoder[layer]}.weight") if naming.decoder else None
    shape = tuple(array.shape) if isinstance(array, ARRAYS) else ()
    return shape if len(shape) == 2 and all(shape) else ()
