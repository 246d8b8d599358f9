"""Converts the reference's pretraining checkpoint (MoCo v1 and v2) to a workdir that resumes it.

The workdir gets both encoders with their running statistics, the queue in the order of its keys'
ages, SGD's momentum buffers and the step. It can't get:

- The order of the images and all random numbers: they follow from our seed and the step.
- The schedule: the checkpoint contains no recipe, so the config defines it. The checkpoint's weight
  decay and SGD momentum are compared with the config's.
- The shuffling by random permutations: ours is a transpose between the batch-norm groups.
- The running statistics of all GPUs: the checkpoint has the first GPU's only; our further steps
  average them over the groups.

The reference stores keys as columns in order of arrival; the oldest is at `queue_ptr`. The step
determines which row of our ring is written next, so the ring is rotated until the oldest keys are
in that row.
"""

import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.contrastive.state import TrainState
from moco_jax.convert.reference import BUFFERS
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import validation
from moco_jax.pretraining.method import make_method
from moco_jax.pretraining.pretrain import checkpoint_kind
from moco_jax.training import workdir
from moco_jax.training.checkpoints import Checkpoints
from moco_jax.training.flat_config import flatten
from moco_jax.weights import variables
from moco_jax.weights.moco_files import KEY, QUERY, Checkpoint, encoder, parameters, part
from moco_jax.weights.names import COUNTER, NAMINGS
from moco_jax.weights.torch_files import ARRAYS


def write_workdir(
    checkpoint: Checkpoint, config: ConfigDict, out: pathlib.Path, images: int | None
) -> list[str]:
    """Writes a workdir that resumes pretraining; returns lines to print.

    Args:
      images: number of training images. None takes the step from the checkpoint's batch counter,
        which is right for the same images and batch size.

    Raises:
      ValueError: if the checkpoint lacks something or does not match the config.
    """
    check_keys(config, checkpoint, {"pretext": ("contrastive",), "dictionary": ("queue",)})
    check(config)
    step = _step(checkpoint, config, images)
    save(_state(checkpoint, config, step), config, out, images)
    return [*epochs_of(checkpoint, step), *_recipe_differences(checkpoint, config)]


def check_keys(
    config: ConfigDict, checkpoint: Checkpoint, needed: dict[str, tuple[Any, ...]]
) -> None:
    """Raises a ValueError for a key of the config with another value than a checkpoint allows."""
    for key, allowed in needed.items():
        if config[key] not in allowed:
            raise ValueError(
                f"--to=workdir needs {key}={' or '.join(map(repr, allowed))} in --config for a "
                f"checkpoint of {checkpoint.version.title}, got {config[key]!r}"
            )


def check(config: ConfigDict) -> None:
    """Validates a config for the devices that it names."""
    validation.check(config, config.mesh.fsdp * max(config.mesh.data, 1))


def save(state: TrainState, config: ConfigDict, out: pathlib.Path, images: int | None) -> None:
    """Writes a workdir with one checkpoint."""
    layout = make_layout(jax.devices()[:1])
    state = jax.device_put(state, make_method(config, layout, 0).state_shardings(state))
    step = int(state.step)
    kept = config.keep_checkpoints, flatten(config), checkpoint_kind(config)
    with workdir.opened(out) as folder:
        workdir.record(folder, config, step)
        with Checkpoints(folder / "checkpoints", *kept) as checkpoints:
            if images is not None:
                checkpoints.identify(images)
            checkpoints.finish(step, state)


def abstract_state(config: ConfigDict) -> TrainState:
    """Returns the shapes of the train state, which does not depend on the number of images."""
    return make_method(config, make_layout(jax.devices()[:1]), 0).abstract_state()


def zeros(tree: Any) -> Any:
    """Returns host arrays for the shapes of `abstract_state`."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def moments_like(tree: Any, values: dict[str, Any]) -> Any:
    """Returns nested dicts with the structure of an optimizer's, which marks frozen parameters."""
    flat: Any = flax.traverse_util.flatten_dict(values)
    return jax.tree.map_with_path(lambda path, _: flat[tuple(entry.key for entry in path)], tree)


def epochs_of(checkpoint: Checkpoint, step: int) -> list[str]:
    """Returns a line about the epochs of a checkpoint."""
    return [f"step {step}: {checkpoint.epoch} epochs of {step / checkpoint.epoch:g} steps each"]


def check_epoch(checkpoint: Checkpoint) -> None:
    """Raises a ValueError if the checkpoint contains no epoch."""
    if checkpoint.epoch < 1:
        raise ValueError(f"{checkpoint.source} contains no epoch, which --to=workdir needs")


def _step(checkpoint: Checkpoint, config: ConfigDict, images: int | None) -> int:
    """Returns the number of steps done, at which our run resumes."""
    check_epoch(checkpoint)
    if images is not None:
        return checkpoint.epoch * max(1, images // config.batch_size)
    step = integer(checkpoint, f"{QUERY}bn1.{COUNTER}")
    queue, pointer = _queue(checkpoint)
    if step < 1 or step * config.batch_size % queue.shape[1] != pointer:
        raise ValueError(
            f"{checkpoint.source} was not trained with batch_size={config.batch_size}: its "
            f"{step} steps left queue_ptr={pointer} in a queue of {queue.shape[1]} keys. Set "
            "batch_size to the checkpoint's, or keep this one and give the number of training "
            "images (1281167 for ImageNet) as --training_images to compute the step"
        )
    return step


def integer(checkpoint: Checkpoint, name: str) -> int:
    """Returns the value of an array of one integer."""
    (array,) = required(checkpoint, name)
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{checkpoint.source}: {name} must be one integer")
    return int(array.reshape(()))


def _queue(checkpoint: Checkpoint) -> tuple[np.ndarray, int]:
    """Returns the keys [D, K] and the column of the oldest."""
    queue, _ = required(checkpoint, "queue", "queue_ptr")
    variables.check_values({"queue": queue}, checkpoint.source)
    pointer = integer(checkpoint, "queue_ptr")
    if queue.ndim != 2 or not 0 <= pointer < queue.shape[1]:
        raise ValueError(
            f"{checkpoint.source}: queue must be [D, K] and queue_ptr one of its columns, got "
            f"{queue.shape} and {pointer}"
        )
    return queue, pointer


def required(checkpoint: Checkpoint, *names: str) -> list[Any]:
    """Returns arrays by name, or raises a ValueError with the names that are missing."""
    missing = [name for name in names if name not in checkpoint.arrays]
    if missing:
        raise ValueError(
            f"{checkpoint.source} lacks {variables.listed(missing)}, which --to=workdir needs; "
            "--to=moco_jax converts the query encoder alone"
        )
    return [checkpoint.arrays[name] for name in names]


def _state(checkpoint: Checkpoint, config: ConfigDict, step: int) -> TrainState:
    """Returns the training state, host arrays."""
    naming, source = NAMINGS["torchvision"], checkpoint.source
    shapes = variables.template(config, head=True)
    required(checkpoint, f"{KEY}conv1.weight")
    query, key = (
        variables.to_flax(
            encoder(checkpoint.arrays, prefix), naming, config, shapes, f"{source}, {prefix}"
        )
        for prefix in (QUERY, KEY)
    )
    trained = {path: shape for path, shape in shapes.items() if path[0] == "params"}
    buffers = _momentum_buffers(checkpoint)
    trace = variables.to_flax(buffers, naming, config, trained, f"{source}: optimizer")
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=query["params"],
        batch_stats=query["batch_stats"],
        key_params=key["params"],
        key_batch_stats=key["batch_stats"],
        opt_state=optax.tree.set(
            zeros(abstract_state(config).opt_state),
            trace=trace["params"],
            count=np.asarray(step, np.int32),
        ),
        dictionary=_ring(checkpoint, config, step),
    )


def _ring(checkpoint: Checkpoint, config: ConfigDict, step: int) -> np.ndarray:
    """Returns the ring [K // N, N, D], rotated so that the next step replaces the oldest keys."""
    queue, pointer = _queue(checkpoint)
    size, per_step = config.queue_size, keys_per_step(config)
    if queue.shape != (config.model.dim, size):
        raise ValueError(
            f"the queue of {checkpoint.source} has {queue.shape[-1]} keys of {len(queue)} numbers, "
            f"but --config has queue_size={size} and model.dim={config.model.dim}; they must match"
        )
    oldest_first = np.roll(queue.T, -pointer, axis=0)
    rows = oldest_first.reshape(size // per_step, per_step, -1)
    return np.roll(rows, step % len(rows), axis=0).astype(jnp.dtype(config.queue_dtype))


def _momentum_buffers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns SGD's momentum buffers of the query encoder, by parameter name.

    The optimizer identifies parameters by numbers (by memory addresses in files of old torch). It
    lists them in the order of the model's parameters, including the key encoder's.
    """
    names = [name for name in checkpoint.arrays if name.startswith((QUERY, KEY))]
    return encoder(optimizer_arrays(checkpoint, "momentum_buffer", names), QUERY)


def optimizer_arrays(checkpoint: Checkpoint, kind: str, names: list[str]) -> dict[str, Any]:
    """Returns the optimizer's arrays of a kind, by the parameter's name in the checkpoint.

    Args:
      names: of the parameters that the optimizer has, in its order, and of buffers, which it has
        not.

    Raises:
      ValueError: if there is no optimizer, or it has another number of parameters.
    """
    numbers = parameters(checkpoint.optimizer)
    if not numbers:
        raise ValueError(
            f"{checkpoint.source} lacks the optimizer, which --to=workdir needs; --to=moco_jax "
            "converts the encoder alone"
        )
    names = [name for name in names if not name.endswith(BUFFERS)]
    if len(names) != len(numbers):
        raise ValueError(
            f"the optimizer of {checkpoint.source} has {len(numbers)} parameters, but its encoders "
            f"have {len(names)}"
        )
    states = part(checkpoint.optimizer, "state")
    return {
        name: array
        for name, number in zip(names, numbers, strict=True)
        if isinstance(array := part(states, number).get(kind), ARRAYS)
    }


def _recipe_differences(checkpoint: Checkpoint, config: ConfigDict) -> list[str]:
    """Returns a line for each SGD setting in which the checkpoint and the config differ."""
    keys = {"momentum": "sgd_momentum", "weight_decay": "weight_decay"}
    return differences(checkpoint, {ours: config[ours] for ours in keys.values()}, keys)


def differences(checkpoint: Checkpoint, values: dict[str, Any], keys: dict[str, str]) -> list[str]:
    """Returns a line for each setting of the optimizer that has another value in the config.

    Args:
      values: of the config, by key.
      keys: the optimizer's settings, to the config's keys.
    """
    group = checkpoint.optimizer["param_groups"][-1]  # MAE's first one has no weight decay
    return [
        f"note: the checkpoint was trained with {setting}={group[setting]}, but --config has "
        f"{key}={values[key]}"
        for setting, key in keys.items()
        if setting in group and group[setting] != values[key]
    ]
