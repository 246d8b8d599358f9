"""Writes the train state of a workdir as the pretraining checkpoint of MoCo v3's authors.

Their `main_moco.py --resume` loads it: the whole builder strictly, the optimizer, and the loss
scaler, which has its first values.

- The optimizer numbers the parameters of the query encoder, of the key encoder and of the
  predictor. The key encoder's, the fixed positions and frozen patches have no state.
- AdamW's `exp_avg` and `exp_avg_sq` are optax's `mu` and `nu`; LARS's `mu` is optax's trace.
- `num_batches_tracked` counts two batches a step, one for each view.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.convert import reference
from moco_jax.models.backbones import make_backbone
from moco_jax.models.vit import NETWORKS
from moco_jax.weights.moco_files import V3
from moco_jax.weights.names import BATCH_NORM_MLP

MOMENTS = {"adamw": {"mu": "exp_avg", "nu": "exp_avg_sq"}, "lars": {"trace": "mu"}}
# What the reference always has, by family: a ViT or a ResNet.
_HEADS = {
    True: {"head_layers": 3, "predictor_layers": 2, "predictor_last_norm": True},
    False: {"head_layers": 2, "predictor_layers": 2, "predictor_last_norm": False},
}


def problem(config: ConfigDict) -> str:
    """Returns why the reference can't continue a run of this config; "" if it can."""
    needed = {"pretext": "contrastive", "dictionary": "in_batch", "key_encoder": "momentum"}
    needed |= {"symmetric": True}
    wrong = [f"{key}={config[key]!r}" for key, value in needed.items() if config[key] != value]
    if config.model.head != BATCH_NORM_MLP:
        wrong.append(f"model.head={config.model.head!r}")
    if not config.model.predictor_layers:
        wrong.append("model.predictor_layers=0")
    if config.optimizer not in MOMENTS:
        wrong.append(f"optimizer={config.optimizer!r}")
    return ", ".join(wrong)


def architecture(config: ConfigDict) -> str:
    """Returns the value of the references' flag --arch."""
    conv = config.model.stem == "conv"
    return config.model.name.replace("vit_", "vit_conv_") if conv else config.model.name


def checkpoint(
    state: dict[str, Any], config: ConfigDict, images: int | None, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns the content of the reference's checkpoint and lines to print.

    Args and errors are those of `reference.checkpoint`.
    """
    steps = reference.steps_per_epoch(config, images, source)
    step = int(state["step"])
    encoders = {
        prefix: reference.torch_arrays(state[params], state[statistics], config, 2 * step)
        for prefix, params, statistics in (
            (V3.query, "params", "batch_stats"),
            (V3.key, "key_params", "key_batch_stats"),
        )
    }
    arrays = _placed(encoders[V3.query]) | {
        V3.key + name: array for name, array in encoders[V3.key].items()
    }
    arrays = dict(sorted(arrays.items(), key=lambda item: item[0].startswith("predictor.")))
    reference.check(arrays, source)
    content = {
        "epoch": step // steps,
        "arch": architecture(config),
        "state_dict": {f"module.{name}": array for name, array in arrays.items()},
        "optimizer": _optimizer(state["opt_state"], list(arrays), config, steps, step, source),
        "scaler": dict(reference.SCALER),
    }
    return content, [*reference.epochs_of(step, steps), *_notes(config)]


def _placed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays of the query encoder and the predictor by their names in the builder."""
    return {
        name if name.startswith("predictor.") else V3.query + name: array
        for name, array in arrays.items()
    }


def _optimizer(
    opt_state: Any, names: list[str], config: ConfigDict, steps: int, step: int, source: str
) -> dict[str, Any]:
    """Returns the state dict of torch's AdamW or of the reference's LARS."""
    moments = {
        theirs: _placed(reference.torch_parameters(reference.find(opt_state, ours), config))
        for ours, theirs in MOMENTS[config.optimizer].items()
    }
    for arrays in moments.values():
        reference.check(arrays, f"{source}: optimizer")
    names = [name for name in names if not name.endswith(reference.BUFFERS)]
    count = {"step": np.array(step, np.float32)} if config.optimizer == "adamw" else {}
    first = next(iter(moments.values()))
    states = {
        number: count | {kind: arrays[name] for kind, arrays in moments.items()}
        for number, name in enumerate(names)
        if name in first
    }
    group = {"lr": reference.last_rate(config, steps, step), "weight_decay": config.weight_decay}
    if config.optimizer == "lars":
        group |= {"momentum": config.sgd_momentum, "trust_coefficient": config.lars_trust}
    else:
        group |= reference.adamw(config)
    return {"state": states, "param_groups": [group | {"params": list(range(len(names)))}]}


def _notes(config: ConfigDict) -> list[str]:
    """Returns what the reference does otherwise with this checkpoint, and the command."""
    model = config.model
    lines = [f"note: {line}" for line in (*_other_networks(config), *_other_recipe(config))]
    flags = f"--moco-dim {model.dim} --moco-mlp-dim {_hidden(config)} --moco-m {config.momentum:g}"
    cosine = " --moco-m-cos" * (config.momentum_schedule == "cosine")
    frozen = " --stop-grad-conv1" * bool(model.freeze_patch)
    rate = config.lr * 256 / config.lr_batch
    return [
        *lines,
        "resume the reference's pretraining with the flags of this run",
        f"  python main_moco.py -a {architecture(config)} --resume OUT "
        f"--optimizer {config.optimizer} --lr {rate:g} --wd {config.weight_decay:g} "
        f"--batch-size {config.batch_size} --warmup-epochs {config.warmup_epochs:g} "
        f"{flags}{cosine} --moco-t {config.temperature:g}{frozen} ...",
    ]


def _hidden(config: ConfigDict) -> int:
    return config.model.hidden or make_backbone(config.model).features


def _other_networks(config: ConfigDict) -> list[str]:
    """Returns in what the networks are not those of the reference's code."""
    model, is_vit = config.model, config.model.name in NETWORKS
    lines = [
        f"the reference's builder must get model.{key}={model[key]} first"
        for key, value in _HEADS[is_vit].items()
        if model[key] != value
    ]
    network: Any = make_backbone(model)
    if is_vit:
        size = "conv_" * (model.stem == "conv") + model.name.removeprefix("vit_")
        usual = {"patch": 16, "pool": "cls", "positions": "sincos"} | NETWORKS[model.name]
        usual["depth"] -= model.stem == "conv"
        given = {key: getattr(network, key) for key in usual}
        odd = [f"{key} {value}" for key, value in given.items() if value != usual[key]]
        if size not in ("small", "base", "conv_small", "conv_base"):
            odd = [f"a ViT {size}", *odd]
        if config.data.image_size != 224:
            odd.append(f"images of {config.data.image_size} pixels")
    else:
        odd = [f"stem {model.stem!r}"] if model.stem != "imagenet" else []
    return [*lines, *([f"the reference's networks must get {', '.join(odd)} first"] if odd else [])]


def _other_recipe(config: ConfigDict) -> list[str]:
    """Returns in what the reference trains on otherwise."""
    usual = {"loss_scale": "2T", "bn_groups": 1, "lr_schedule": "cosine", "lr_update": "step"}
    odd = [f"{key} {config[key]}" for key, value in usual.items() if config[key] != value]
    return [f"the reference has another recipe than this run: {', '.join(odd)}"] if odd else []
