"""Converts the pretraining checkpoint of MAE's authors to a workdir that resumes it.

The workdir gets the encoder, the decoder, the moments of AdamW and the step. It can't get what
`moco` and `moco_v3` name, and the masks, which follow from our seed and the step.

Their AdamW has two groups: first the biases and the scales of norms, without weight decay, then the
other parameters. The fixed positions are in neither.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.state import TrainState
from moco_jax.convert import moco
from moco_jax.convert.reference_mae import grouped
from moco_jax.convert.reference_v3 import MOMENTS
from moco_jax.weights import variables
from moco_jax.weights.moco_files import Checkpoint, parameters, part
from moco_jax.weights.names import NAMINGS

_NAMING = NAMINGS["vit"]
_COUNT = "step"  # of AdamW
_SETTINGS = {"weight_decay": "weight_decay", "eps": "adam_eps", "betas": "betas"}


def write_workdir(
    checkpoint: Checkpoint, config: ConfigDict, out: pathlib.Path, images: int | None
) -> list[str]:
    """Writes a workdir that resumes pretraining; returns lines to print.

    Args and errors are those of `moco.write_workdir`, but the step comes from the optimizer.
    """
    needed: dict[str, tuple[Any, ...]] = {"pretext": ("masked",), "optimizer": ("adamw",)}
    needed["decay_all"] = (False,)
    moco.check_keys(config, checkpoint, needed)
    moco.check(config)
    if config.model.positions == "learned" or config.model.freeze_patch:
        raise ValueError(
            "--to=workdir needs model.positions='sincos_mae' or 'sincos' and "
            "model.freeze_patch=False in --config for a checkpoint of MAE"
        )
    moments = {ours: _moments(checkpoint, theirs) for ours, theirs in MOMENTS["adamw"].items()}
    step = _step(checkpoint, config, images)
    moco.save(_state(checkpoint, config, moments, step), config, out, images)
    values = {**config.to_dict(), "betas": [config.adam_b1, config.adam_b2]}
    return [*moco.epochs_of(checkpoint, step), *moco.differences(checkpoint, values, _SETTINGS)]


def _without_positions(arrays: dict[str, Any]) -> dict[str, Any]:
    tables = _NAMING.layers["positions"], _NAMING.decoder["positions"]
    return {name: array for name, array in arrays.items() if name not in tables}


def _moments(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """Returns the arrays of a kind in AdamW's state by the parameter's name."""
    vectors, others = grouped(_without_positions(checkpoint.arrays))
    found = moco.optimizer_arrays(checkpoint, kind, [*vectors, *others])
    if not found:
        raise ValueError(
            f"the optimizer of {checkpoint.source} has no {kind}: it is not AdamW, which "
            "--to=workdir needs"
        )
    return found


def _step(checkpoint: Checkpoint, config: ConfigDict, images: int | None) -> int:
    """Returns the number of steps done, at which our run resumes."""
    moco.check_epoch(checkpoint)
    if images is not None:
        return checkpoint.epoch * max(1, images // config.batch_size)
    states = part(checkpoint.optimizer, "state")
    counts = {_integer(part(states, n).get(_COUNT)) for n in parameters(checkpoint.optimizer)}
    step = counts.pop() if len(counts) == 1 else 0
    if step < 1 or step % checkpoint.epoch:
        raise ValueError(
            f"{checkpoint.source}: the {step} steps of its optimizer are no {checkpoint.epoch} "
            "epochs of equal length; give the number of training images (1281167 for ImageNet) as "
            "--training_images to compute the step"
        )
    return step


def _integer(value: Any) -> int:
    """Returns a count, 0 if it is none. Newer versions of torch have an array."""
    value = value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value
    whole = isinstance(value, (int, float, np.number)) and float(value).is_integer()
    return int(value) if whole else 0


def _state(
    checkpoint: Checkpoint, config: ConfigDict, moments: dict[str, Any], step: int
) -> TrainState:
    """Returns the training state, host arrays."""
    shapes = variables.template(config, head=False, decoder=True)

    def tree(arrays: dict[str, Any], what: str) -> dict[str, Any]:
        source = f"{checkpoint.source}{what}"
        return variables.to_flax(arrays, _NAMING, config, shapes, source)["params"]

    fresh = moco.zeros(moco.abstract_state(config))
    found = {
        kind: moco.moments_like(optax.tree.get(fresh.opt_state, kind), tree(arrays, f": {kind}"))
        for kind, arrays in moments.items()
    }
    return fresh.replace(
        step=jnp.asarray(step, jnp.int32),
        params=tree(_without_positions(checkpoint.arrays), ""),
        opt_state=optax.tree.set(fresh.opt_state, **found, count=np.asarray(step, np.int32)),
    )
