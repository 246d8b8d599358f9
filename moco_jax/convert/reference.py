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
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.resnet import resnet
from moco_jax.training.integrity import checkpoint_files
from moco_jax.training.optimizers import make_schedule
from moco_jax.weights import variables, vit
from moco_jax.weights.moco_files import KEY, QUERY
from moco_jax.weights.names import COUNTER, NAMINGS, naming_of

BUFFERS = (".running_mean", ".running_var", f".{COUNTER}")
# The parts of the references' names, in the order of torch's modules and arrays.
_ORDER = (
    *("cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed"),
    *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample"),
    *("layer1", "layer2", "layer3", "layer4"),
    *("blocks", "norm1", "attn", "qkv", "proj", "norm2", "mlp", "fc1", "fc2", "norm"),
    *("decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"),
    *("fc", "head", "predictor"),
    *("weight", "bias", "running_mean", "running_var", COUNTER),
)

# A new loss scaler of torch, of float16.
SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 0,
}


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
    needed = {"pretext": "contrastive", "dictionary": "queue", "key_encoder": "momentum"}
    wrong = [f"{key}={config[key]!r}" for key, value in needed.items() if config[key] != value]
    if layers := config.model.predictor_layers:
        wrong.append(f"model.predictor_layers={layers}")
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
    steps = steps_per_epoch(config, images, source)
    step = int(state["step"])
    batches = step * (2 if config.symmetric else 1)
    trace = find(state["opt_state"], "trace")
    encoders = {
        QUERY: torch_arrays(state["params"], state["batch_stats"], config, batches),
        KEY: torch_arrays(state["key_params"], state["key_batch_stats"], config, batches),
    }
    queue, pointer = _queue(np.asarray(state["dictionary"], np.float32), step)
    arrays = {"queue": queue} | {
        prefix + name: array for prefix, own in encoders.items() for name, array in own.items()
    }
    buffers = torch_parameters(trace, config)
    check(arrays, source)
    check(buffers, f"{source}: optimizer")
    arrays["queue_ptr"] = np.array([pointer], np.int64)
    content = {
        "epoch": step // steps,
        "arch": config.model.name,
        "state_dict": {f"module.{name}": array for name, array in arrays.items()},
        "optimizer": _optimizer(buffers, encoders[KEY], config, steps, step),
    }
    return content, _notes(config, step, steps)


def steps_per_epoch(config: ConfigDict, images: int | None, source: str) -> int:
    """Returns the steps of a pass over `images` images; None raises a ValueError."""
    if images is None:
        raise ValueError(
            f"{source} does not contain the number of training images, from which the epoch "
            "follows; set --training_images, such as --training_images=1281167 for ImageNet"
        )
    return max(1, images // config.batch_size)


def torch_arrays(
    params: Any, batch_stats: Any, config: ConfigDict, batches: int
) -> dict[str, np.ndarray]:
    """Returns an encoder's arrays under the reference's names, in the order of torch's modules.

    Args:
      batches: value of the batch norms' counters.
    """
    trees = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
    arrays = _arrays(vit.with_positions(trees, config), config)
    counters = {name: np.array(batches, np.int64) for name in arrays if name.endswith(COUNTER)}
    return arrays | counters


def torch_parameters(params: Any, config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the arrays of parameters, or of an optimizer's state for them, in the same way."""
    return _arrays({"params": params}, config)


def _arrays(trees: dict[str, Any], config: ConfigDict) -> dict[str, np.ndarray]:
    return ordered(variables.to_torch(trees, NAMINGS[naming_of(config.model)], config))


def ordered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays under the references' names in the order of torch's modules."""
    return {name: arrays[name] for name in sorted(arrays, key=_order)}


def _order(name: str) -> list[int]:
    """Returns the place of an array in the reference's encoder."""
    parts = name.split(".")
    return [int(part) if part.isdigit() else _ORDER.index(part) for part in parts]


def _queue(ring: np.ndarray, step: int) -> tuple[np.ndarray, int]:
    """Returns the keys [D, K] of a ring [R, N, D] and the column of the oldest key."""
    rows, keys, dim = ring.shape
    return np.ascontiguousarray(ring.reshape(rows * keys, dim).T), step % rows * keys


def _optimizer(
    buffers: dict[str, np.ndarray],
    key_arrays: dict[str, np.ndarray],
    config: ConfigDict,
    steps: int,
    step: int,
) -> dict[str, Any]:
    """Returns the state dict of torch's SGD; its learning rate is the last step's."""
    key_count = sum(not name.endswith(BUFFERS) for name in key_arrays)
    group = {
        "lr": last_rate(config, steps, step),
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


def adamw(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings of torch's AdamW besides the learning rate and the decay."""
    return {
        "betas": (config.adam_b1, config.adam_b2),
        "eps": config.adam_eps,
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
    }


def last_rate(config: ConfigDict, steps: int, step: int) -> float:
    """Returns the learning rate of the last of `step` steps, with `steps` steps an epoch."""
    with jax.enable_x64(True):  # torch keeps the rate in double precision
        return float(make_schedule(config, steps)(max(0, step - 1)))


def epochs_of(step: int, steps: int) -> list[str]:
    """Returns lines about the epochs that `step` steps are, with `steps` steps an epoch."""
    lines = [f"step {step}: {step // steps} epochs of {steps} steps each"]
    if step % steps:
        done = f"{step % steps} of {steps} steps"
        lines.append(f"note: the last epoch is not complete ({done}); the reference repeats it")
    return lines


def _notes(config: ConfigDict, step: int, steps: int) -> list[str]:
    """Returns what the reference does otherwise with this checkpoint."""
    model = config.model
    lines = epochs_of(step, steps)
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


def check(arrays: dict[str, np.ndarray], source: str) -> None:
    """Raises a ValueError if an array contains NaN or infinity."""
    weights = {name: array for name, array in arrays.items() if not name.endswith(COUNTER)}
    variables.check_values(weights, source)


def find(tree: Any, name: str) -> Any:
    """Returns the value of a key anywhere in nested containers; None if it is not there."""
    items = tree.items() if isinstance(tree, dict) else ()
    inner = list(tree.values()) if isinstance(tree, dict) else tree
    inner = inner if isinstance(inner, (list, tuple)) else []
    direct = [value for key, value in items if key == name]
    found = direct + [value for x in inner if (value := find(x, name)) is not None]
    return found[0] if found else None
