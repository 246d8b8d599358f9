"""The reference's pretraining checkpoint (MoCo v1 and v2), whole: a run that can go on.

What is carried: both encoders with their running statistics, the queue in the order of its keys'
ages, SGD's momentum buffers and the step. What can't be:

- the order of the images and all random numbers: they follow from our seed and the step;
- the schedule: the checkpoint holds no recipe, so the config tells it. Its weight decay and SGD's
  momentum are compared;
- shuffling by random permutations: ours is a transpose between the batch-norm groups;
- other GPUs' running statistics: the checkpoint has those of the first alone, ours are then a mean.

The queue's keys lie there as columns, in the order in which they came, from `queue_ptr` on the
oldest. Our ring's row of a step follows from the step, so the ring is turned until the oldest keys
lie in the row that is written next.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.contrastive.dictionaries import make_dictionary
from moco_jax.contrastive.train_step import TrainState, abstract_state, state_shardings
from moco_jax.convert import variables
from moco_jax.convert.names import COUNTER, LAYOUTS
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.pretraining import validation
from moco_jax.training import workdir
from moco_jax.training.checkpoints import PRETRAIN, Checkpoints
from moco_jax.training.optimizers import make_optimizer, make_schedule

QUERY, KEY = "encoder_q.", "encoder_k."
_BUFFERS = (".running_mean", ".running_var", f".{COUNTER}")


class Checkpoint(NamedTuple):
    """What a checkpoint of the reference holds.

    Attributes:
      source: its path, for messages.
      epoch: epochs done; 0 if it does not tell.
      arrays: by name, without DistributedDataParallel's `module.`.
      optimizer: the state dict of torch's SGD; {} if it is not there.
    """

    source: str
    epoch: int
    arrays: dict[str, np.ndarray]
    optimizer: dict[str, Any]

    @property
    def besides(self) -> list[str]:
        """What it holds besides the query encoder."""
        parts = {
            "the key encoder": any(name.startswith(KEY) for name in self.arrays),
            "the queue": "queue" in self.arrays,
            "the optimizer": bool(self.optimizer),
        }
        return [part for part, there in parts.items() if there]


def encoder(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one of the encoders, without its prefix."""
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def write_workdir(
    checkpoint: Checkpoint, config: ConfigDict, out: pathlib.Path, images: int | None
) -> list[str]:
    """Writes a workdir that pretraining goes on from; returns what is to be told.

    Args:
      checkpoint: of the reference.
      config: of the run that goes on.
      out: the workdir.
      images: in the training set. None takes the step from the checkpoint's own count of batches,
        which is right for the same images and batch size.

    Raises:
      ValueError: if something is missing in the checkpoint, or is not as the config has it.
    """
    if config.dictionary != "queue":
        raise ValueError(f"the reference has dictionary='queue', --config {config.dictionary!r}")
    devices = config.mesh.fsdp * max(config.mesh.data, 1)
    validation.check(config, devices)
    layout = make_layout(jax.devices()[:1])
    step = _step(checkpoint, config, images)
    state = _state(checkpoint, config, layout, step)
    with workdir.opened(out) as folder:
        workdir.record(folder, config, step)
        recipe = config_lib.flatten(config)
        keep = config.keep_checkpoints
        with Checkpoints(folder / "checkpoints", keep, recipe, PRETRAIN) as checkpoints:
            if images is not None:
                checkpoints.note_images(images)
            checkpoints.save(step, state)
            checkpoints.wait()
    told = f"step {step}, epoch {checkpoint.epoch} of {step / checkpoint.epoch:g} steps each"
    return [told, *_other_recipe(checkpoint, config)]


def _step(checkpoint: Checkpoint, config: ConfigDict, images: int | None) -> int:
    """Returns the step at which our run goes on."""
    if checkpoint.epoch < 1:
        raise ValueError(f"{checkpoint.source} does not tell its epoch")
    if images is not None:
        return checkpoint.epoch * max(1, images // config.batch_size)
    counter = f"{QUERY}bn1.{COUNTER}"
    needed = _needed(checkpoint, counter, "queue", "queue_ptr")
    step, queue, pointer = int(needed[0]), needed[1], int(np.ravel(needed[2])[0])
    if step < 1 or step * config.batch_size % queue.shape[1] != pointer:
        raise ValueError(
            f"{checkpoint.source} did {step} steps, but {pointer} is not where "
            f"batch_size={config.batch_size} would have left its queue of {queue.shape[1]} keys: "
            "it had another batch size. Give that one, or go on with this one and tell the number "
            "of images, from which the steps of an epoch follow: --training_images=1281167"
        )
    return step


def _needed(checkpoint: Checkpoint, *names: str) -> list[np.ndarray]:
    missing = [name for name in names if name not in checkpoint.arrays]
    if missing:
        raise ValueError(
            f"{checkpoint.source} lacks {variables.listed(missing)}, without which pretraining "
            "can't go on; --to=moco_jax takes its encoder alone"
        )
    return [checkpoint.arrays[name] for name in names]


def _state(checkpoint: Checkpoint, config: ConfigDict, layout: Layout, step: int) -> TrainState:
    """Returns the state, on the device."""
    names, source = LAYOUTS["torchvision"], checkpoint.source
    shapes = variables.template(config, head=True)
    _needed(checkpoint, f"{KEY}conv1.weight")
    query = variables.to_ours(encoder(checkpoint.arrays, QUERY), names, config, shapes, source)
    key = variables.to_ours(encoder(checkpoint.arrays, KEY), names, config, shapes, source)
    trained = {path: shape for path, shape in shapes.items() if path[0] == "params"}
    trace = variables.to_ours(_momentum(checkpoint), names, config, trained, f"{source}: optimizer")
    module = make_encoder(config)
    # Only the structure of the optimizer's state counts here, not the length of an epoch.
    optimizer = make_optimizer(config, make_schedule(config, 1))
    dictionary = make_dictionary(config, layout, 0)  # a queue: no image has a slot
    target = abstract_state(config, module, optimizer, dictionary, layout)
    opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target.opt_state)
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=query["params"],
        batch_stats=query["batch_stats"],
        key_params=key["params"],
        key_batch_stats=key["batch_stats"],
        opt_state=optax.tree.set(
            opt_state, trace=trace["params"], count=np.asarray(step, np.int32)
        ),
        dictionary=_ring(checkpoint, config, step),
    )
    return jax.device_put(state, state_shardings(state, dictionary, layout))


def _ring(checkpoint: Checkpoint, config: ConfigDict, step: int) -> np.ndarray:
    """Returns the ring [K // N, N, D] in which the next step replaces the oldest keys."""
    queue, pointer = _needed(checkpoint, "queue", "queue_ptr")
    size, per_step = config.queue_size, config_lib.keys_per_step(config)
    if queue.shape != (config.model.dim, size):
        raise ValueError(
            f"the queue of {checkpoint.source} holds {queue.shape[-1]} keys of {len(queue)} "
            f"numbers; the config has queue_size={size} and model.dim={config.model.dim}"
        )
    oldest_first = np.roll(queue.T, -int(np.ravel(pointer)[0]), axis=0)
    rows = oldest_first.reshape(size // per_step, per_step, -1)
    return np.roll(rows, step % len(rows), axis=0).astype(jnp.dtype(config.queue_dtype))


def _momentum(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Returns SGD's buffer of each of the query encoder's parameters, by its name.

    The optimizer's own names of parameters are numbers (memory addresses, in files of old torch),
    listed in the order of the model's parameters, the key encoder's among them.
    """
    groups = checkpoint.optimizer.get("param_groups")
    if not groups:
        raise ValueError(
            f"{checkpoint.source} lacks the optimizer; --to=moco_jax takes its encoder"
        )
    names = [
        name
        for name in checkpoint.arrays
        if name.startswith((QUERY, KEY)) and not name.endswith(_BUFFERS)
    ]
    numbers = [number for group in groups for number in group["params"]]
    if len(names) != len(numbers):
        raise ValueError(
            f"the optimizer of {checkpoint.source} has {len(numbers)} parameters, the encoders "
            f"{len(names)}"
        )
    states = checkpoint.optimizer["state"]
    buffers = {
        name: states.get(number, {}).get("momentum_buffer")
        for name, number in zip(names, numbers, strict=True)
    }
    own = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return encoder(own, QUERY)


def _other_recipe(checkpoint: Checkpoint, config: ConfigDict) -> list[str]:
    """Returns what of the recipe the checkpoint tells otherwise than the config."""
    group = checkpoint.optimizer["param_groups"][0]
    ours = {"momentum": "sgd_momentum", "weight_decay": "weight_decay"}
    return [
        f"note: the checkpoint was trained with {theirs} {group[theirs]}, and --config has "
        f"{key}={config[key]}"
        for theirs, key in ours.items()
        if theirs in group and group[theirs] != config[key]
    ]
