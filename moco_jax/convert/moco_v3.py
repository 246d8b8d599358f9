"""Converts the pretraining checkpoint of MoCo v3's authors to a workdir that resumes it.

The workdir gets both encoders and the predictor with their running statistics, the moments of the
optimizer and the step. Besides what `moco` names, it can't get the state of the loss scaler, which
float32 and bfloat16 do not need. Steps that the scaler skipped count as steps.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.state import TrainState
from moco_jax.convert import moco
from moco_jax.convert.reference_v3 import MOMENTS
from moco_jax.models.backbones import make_backbone
from moco_jax.weights import variables
from moco_jax.weights.moco_files import V3, Checkpoint, encoder
from moco_jax.weights.names import COUNTER, NAMINGS, Naming, naming_of

_PREDICTOR = "predictor."
# The optimizers' settings, to the keys of the config.
_SETTINGS = {
    "adamw": {"weight_decay": "weight_decay", "eps": "adam_eps", "betas": "betas"},
    "lars": {
        "weight_decay": "weight_decay",
        "momentum": "sgd_momentum",
        "trust_coefficient": "lars_trust",
    },
}


def write_workdir(
    checkpoint: Checkpoint, config: ConfigDict, out: pathlib.Path, images: int | None
) -> list[str]:
    """Writes a workdir that resumes pretraining; returns lines to print.

    Args and errors are those of `moco.write_workdir`.
    """
    needed = {"pretext": ("contrastive",), "dictionary": ("in_batch",)}
    needed |= {"key_encoder": ("momentum",), "optimizer": (*MOMENTS,)}
    moco.check_keys(config, checkpoint, needed)
    moco.check(config)
    naming = NAMINGS[naming_of(config.model)]
    step = _step(checkpoint, config, naming, images)
    moco.save(_state(checkpoint, config, naming, step), config, out, images)
    values = {**config.to_dict(), "betas": [config.adam_b1, config.adam_b2]}
    settings = _SETTINGS[config.optimizer]
    return [*moco.epochs_of(checkpoint, step), *moco.differences(checkpoint, values, settings)]


def _step(checkpoint: Checkpoint, config: ConfigDict, naming: Naming, images: int | None) -> int:
    """Returns the number of steps done, at which our run resumes."""
    moco.check_epoch(checkpoint)
    if images is not None:
        return checkpoint.epoch * max(1, images // config.batch_size)
    batches = moco.integer(checkpoint, f"{V3.query}{naming.classifier}.1.{COUNTER}")
    step, odd = divmod(batches, 2)  # two views a step
    if odd or step < 1 or step % checkpoint.epoch:
        raise ValueError(
            f"{checkpoint.source}: {batches} batches of two views are no {checkpoint.epoch} epochs "
            "of equal length; give the number of training images (1281167 for ImageNet) as "
            "--training_images to compute the step"
        )
    return step


def _state(checkpoint: Checkpoint, config: ConfigDict, naming: Naming, step: int) -> TrainState:
    """Returns the training state, host arrays."""
    shapes, source = variables.template(config, head=True), checkpoint.source
    keys = {path: shape for path, shape in shapes.items() if path[1] != "predictor"}
    learned = config.model.get("positions") == "learned"
    table = None if learned else naming.layers.get("positions")

    def tree(prefix: str, wanted: Any) -> dict[str, Any]:
        arrays = encoder(checkpoint.arrays, prefix)
        if prefix == V3.query:
            arrays |= _of_predictor(checkpoint.arrays)
        arrays = {name: array for name, array in arrays.items() if name != table}
        return variables.to_flax(arrays, naming, config, wanted, f"{source}, {prefix}")

    if not encoder(checkpoint.arrays, V3.key):
        raise ValueError(
            f"{source} lacks {V3.key}*, which --to=workdir needs; --to=moco_jax converts the query "
            "encoder alone"
        )
    query, key = tree(V3.query, shapes), tree(V3.key, keys)
    abstract = moco.abstract_state(config)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=query["params"],
        batch_stats=query["batch_stats"],
        key_params=key["params"],
        key_batch_stats=key["batch_stats"],
        opt_state=_opt_state(checkpoint, config, naming, moco.zeros(abstract.opt_state), step),
        dictionary=moco.zeros(abstract.dictionary),
    )


def _of_predictor(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name.startswith(_PREDICTOR)}


def _opt_state(
    checkpoint: Checkpoint, config: ConfigDict, naming: Naming, fresh: Any, step: int
) -> Any:
    """Returns the optimizer's state with the checkpoint's moments in place of zeros."""
    frozen = make_backbone(config.model).frozen
    trained = {
        path: shape
        for path, shape in variables.template(config, head=True).items()
        if path[0] == "params" and path[2] not in frozen
    }
    parts = V3.query, V3.key, _PREDICTOR
    names = [name for name in checkpoint.arrays if name.startswith(parts)]
    found = {}
    for ours, theirs in MOMENTS[config.optimizer].items():
        whole = moco.optimizer_arrays(checkpoint, theirs, names)
        arrays = encoder(whole, V3.query) | _of_predictor(whole)
        _check_moments(arrays, theirs, checkpoint, config, naming)
        source = f"{checkpoint.source}: {theirs} of the optimizer"
        moments = variables.to_flax(arrays, naming, config, trained, source)["params"]
        found[ours] = moco.moments_like(optax.tree.get(fresh, ours), moments)
    return optax.tree.set(fresh, **found, count=np.asarray(step, np.int32))


def _check_moments(
    arrays: dict[str, Any], kind: str, checkpoint: Checkpoint, config: ConfigDict, naming: Naming
) -> None:
    if not arrays:
        raise ValueError(
            f"the optimizer of {checkpoint.source} has no {kind}: it is not "
            f"optimizer={config.optimizer!r}, which --config has; allowed: {', '.join(MOMENTS)}"
        )
    patches = naming.layers.get("patch_embed", "")
    has = any(name.startswith(f"{patches}.") for name in arrays)
    if patches and has == config.model.freeze_patch:
        was = "trained" if has else "kept its random weights"
        raise ValueError(
            f"the map of the patches of {checkpoint.source} {was}; set "
            f"--config.model.freeze_patch={not has}"
        )
