"""Writes the train state of a workdir as the reference's pretraining checkpoint (MoCo v1 and v2).

The reference's `main_moco.py --resume` loads it: the whole builder strictly, and the optimizer.

- Our ring [K // N, N, D] in the order of its rows is the reference's queue, whose columns are keys.
  The row that the next step replaces has the oldest keys; its first key is at `queue_ptr`.
- torch's momentum buffer is optax's trace: both add the weight decay to the gradient first.
- The optimizer numbers the parameters of the query encoder, then those of the key encoder, which
  have no buffers, in the order of the modules.
- `num_batches_tracked` counts the training batches of each encoder.
"""

import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.resnet import resnet
from moco_jax.training.integrity import checkpoint_files
from moco_jax.training.optimizers import make_schedule
from moco_jax.weights import variables
from moco_jax.weights.moco_files import KEY, QUERY
from moco_jax.weights.names import COUNTER, NAMINGS

_BUFFERS = ("running_mean", "running_var", COUNTER)
_LEAVES = ("weight", "bias", *_BUFFERS)
_MODULES = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample")  # in a block


class Saved(NamedTuple):
    """A whole checkpoint.

    Attributes:
      encoder: its encoder and the config of its run.
      about: its description.
      state: the train state, nested dicts of host arrays.
    """

    encoder: Pretrained
    about: dict[str, Any]
    state: Any


def read_state(path: pathlib.Path) -> Saved:
    """Returns a checkpoint, or the newest one of a workdir whose whole train state is undamaged.

    Raises:
      ValueError: if it is damaged, or not a checkpoint of pretraining.
    """
    if (path / "about").is_dir():
        folder = path
        try:
            about = checkpoint_files.read_about(folder)
            state = checkpoint_files.read_arrays(folder, about)
        except checkpoint_files.Damaged as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    else:
        checkpoints = path / "checkpoints"
        newest = checkpoint_files.newest_whole(checkpoints)
        if newest is None:
            raise ValueError(f"{path} holds no checkpoint")
        checkpoint_files.warn_of_damaged(checkpoints, newest.damaged, newest.step)
        folder, about, state = checkpoints / str(newest.step), newest.about, newest.arrays
    return Saved(pretrained.of_checkpoint(folder, about, state), about, state)


def problem(config: ConfigDict) -> str:
    """Returns why the reference can't continue a run of this config; "" if it can."""
    needed = {"dictionary": "queue", "key_encoder": "momentum"}
    wrong = [f"{key}={config[key]!r}" for key, value in needed.items() if config[key] != value]
    return ", ".join(wrong)


def checkpoint(
    state: dict[str, Any], config: ConfigDict, images: int | None, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns the content of the reference's checkpoint and lines to print.

    Args:
      state: the train state as nested dicts of host arrays.
      config: of the run.
      images: number of training images, from which the epoch follows.
      source: where the state comes from, for messages.

    Raises:
      ValueError: if the number of images is unknown, or the state contains NaN or infinity.
    """
    if images is None:
        raise ValueError(
            f"{source} does not contain the number of training images, from which the epoch "
            "follows; set --training_images, such as --training_images=1281167 for ImageNet"
        )
    step = int(state["step"])
    batches = step * (2 if config.symmetric else 1)
    trace = _find(state["opt_state"], "trace")
    encoders = {
        QUERY: _torch(state["params"], state["batch_stats"], config, batches),
        KEY: _torch(state["key_params"], state["key_batch_stats"], config, batches),
    }
    queue, pointer = _queue(np.asarray(state["dictionary"], np.float32), step)
    arrays = {"queue": queue} | {
        prefix + name: array for prefix, own in encoders.items() for name, array in own.items()
    }
    buffers = _torch(trace, {}, config, batches)
    _check(arrays, source)
    _check(buffers, f"{source}: optimizer")
    arrays["queue_ptr"] = np.array([pointer], np.int64)
    steps = max(1, images // config.batch_size)
    content = {
        "epoch": step // steps,
        "arch": config.model.name,
        "state_dict": {f"module.{name}": array for name, array in arrays.items()},
        "optimizer": _optimizer(buffers, encoders[KEY], config, steps, step),
    }
    return content, _notes(config, step, steps)


def _torch(
    params: Any, batch_stats: Any, config: ConfigDict, batches: int
) -> dict[str, np.ndarray]:
    """Returns arrays under torch's names, in the order of torch's modules."""
    trees = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
    arrays = variables.to_torch(trees, NAMINGS["torchvision"], config)
    for name in arrays:
        if name.endswith(COUNTER):
            arrays[name] = np.array(batches, np.int64)
    return {name: arrays[name] for name in sorted(arrays, key=_order)}


def _order(name: str) -> tuple[Any, ...]:
    """Returns the place of an array in torchvision's ResNet: stem, stages, head."""
    *module, leaf = name.split(".")
    stage = re.fullmatch(r"layer(\d)", module[0])
    if stage:
        place = int(stage[1]), int(module[1]), _MODULES.index(module[2]), module[3:]
    else:
        place = (9, *map(int, module[1:])) if module[0] == "fc" else (0, _MODULES.index(module[0]))
    return *place, _LEAVES.index(leaf)


def _queue(ring: np.ndarray, step: int) -> tuple[np.ndarray, int]:
    """Returns the keys [D, K] of a ring [R, N, D] and the column of the oldest key."""
    rows, keys, dim = ring.shape
    return np.ascontiguousarray(ring.reshape(rows * keys, dim).T), step % rows * keys


def _optimizer(
    buffers: dict[str, np.ndarray],
    key_arrays: dict[str, np.ndarray],
    config: ConfigDict,
    steps_per_epoch: int,
    step: int,
) -> dict[str, Any]:
    """Returns the state dict of torch's SGD; its learning rate is the last step's."""
    key_count = sum(not name.endswith(_BUFFERS) for name in key_arrays)
    with jax.enable_x64(True):  # torch keeps the rate in double precision
        rate = float(make_schedule(config, steps_per_epoch)(max(0, step - 1)))
    group = {
        "lr": rate,
        "momentum": config.sgd_momentum,
        "dampening": 0,
        "weight_decay": config.weight_decay,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": None,
        "params": list(range(len(buffers) + key_count)),
    }
    states = {i: {"momentum_buffer": buffer} for i, buffer in enumerate(buffers.values())}
    return {"state": states, "param_groups": [group]}


def _notes(config: ConfigDict, step: int, steps: int) -> list[str]:
    """Returns what the reference does otherwise with this checkpoint."""
    model = config.model
    lines = [f"step {step}: {step // steps} epochs of {steps} steps each"]
    if step % steps:
        done = f"{step % steps} of {steps} steps"
        lines.append(f"note: the last epoch is not complete ({done}); the reference repeats it")
    if model.stem != "imagenet":
        lines.append(f"note: the reference's encoders must get the stem {model.stem!r} first")
    if model.head == "mlp" and model.hidden not in (0, resnet(model.name).features):
        lines.append(f"note: the reference's head must get model.hidden={model.hidden} first")
    if config.symmetric:
        lines.append("note: the reference's loss is not symmetric, that of this run is")
    flags = f"--moco-dim {model.dim} --moco-k {config.queue_size} --moco-m {config.momentum:g}"
    mlp = " --mlp" if model.head == "mlp" else ""
    return [
        *lines,
        "resume the reference's pretraining with the flags of this run",
        f"  python main_moco.py -a {model.name} --resume OUT --batch-size {config.batch_size} "
        f"{flags} --moco-t {config.temperature:g}{mlp} ...",
    ]


def _check(arrays: dict[str, np.ndarray], source: str) -> None:
    weights = {name: array for name, array in arrays.items() if not name.endswith(COUNTER)}
    variables.check_values(weights, source)


def _find(tree: Any, name: str) -> Any:
    """Returns the value of a key anywhere in nested containers; None if it is not there."""
    items = tree.items() if isinstance(tree, dict) else ()
    inner = list(tree.values()) if isinstance(tree, dict) else tree
    inner = inner if isinstance(inner, (list, tuple)) else []
    direct = [value for key, value in items if key == name]
    found = direct + [value for x in inner if (value := _find(x, name)) is not None]
    return found[0] if found else None
