"""Writes the train state of a workdir as the pretraining checkpoint of MAE's authors.

Their `main_pretrain.py --resume` loads it: the model strictly, AdamW, and the loss scaler, which
has its first values.

- AdamW's two groups and the order of the parameters are described in `mae`.
- Their `epoch` is the number of the last epoch, counted from 0.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.convert import reference
from moco_jax.convert.reference_v3 import MOMENTS
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.backbones import make_backbone
from moco_jax.weights.huggingface import EPSILON

# Their networks: length of a token, blocks, heads, patch.
_NETWORKS = {
    (768, 12, 12, 16): "mae_vit_base_patch16",
    (1024, 24, 16, 16): "mae_vit_large_patch16",
    (1280, 32, 16, 14): "mae_vit_huge_patch14",
}
_DECODER = {"dim": 512, "depth": 8, "heads": 16}


def problem(config: ConfigDict) -> str:
    """Returns why MAE's code can't continue a run of this config; "" if it can."""
    needed = {"pretext": "masked", "optimizer": "adamw", "decay_all": False}
    wrong = [f"{key}={config[key]!r}" for key, value in needed.items() if config[key] != value]
    if config.model.positions == "learned":
        wrong.append("model.positions='learned'")
    if config.model.freeze_patch:
        wrong.append("model.freeze_patch=True")
    return ", ".join(wrong)


def grouped(arrays: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the names of the parameters without weight decay and of the others."""
    vectors = [name for name, x in arrays.items() if len(x.shape) == 1 or name.endswith(".bias")]
    return vectors, [name for name in arrays if name not in vectors]


def checkpoint(
    state: dict[str, Any], config: ConfigDict, images: int | None, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns the content of MAE's checkpoint and lines to print.

    Args and errors are those of `reference.checkpoint`.
    """
    steps = reference.steps_per_epoch(config, images, source)
    step = int(state["step"])
    arrays = reference.torch_arrays(state["params"], {}, config, 0)
    reference.check(arrays, source)
    content = {
        "model": arrays,
        "optimizer": _optimizer(state["opt_state"], config, steps, step, source),
        "epoch": step // steps - 1,
        "scaler": dict(reference.SCALER),
    }
    return content, [*reference.epochs_of(step, steps), *_notes(config)]


def _optimizer(
    opt_state: Any, config: ConfigDict, steps: int, step: int, source: str
) -> dict[str, Any]:
    """Returns the state dict of torch's AdamW with two groups."""
    moments = {
        theirs: reference.torch_parameters(reference.find(opt_state, ours), config)
        for ours, theirs in MOMENTS["adamw"].items()
    }
    for arrays in moments.values():
        reference.check(arrays, f"{source}: optimizer")
    vectors, others = grouped(next(iter(moments.values())))
    count = {"step": np.array(step, np.float32)}
    states = {
        number: count | {kind: arrays[name] for kind, arrays in moments.items()}
        for number, name in enumerate((*vectors, *others))
    }
    numbers, first = list(states), len(vectors)
    group = {"lr": reference.last_rate(config, steps, step)} | reference.adamw(config)
    return {
        "state": states,
        "param_groups": [
            group | {"weight_decay": 0.0, "params": numbers[:first]},
            group | {"weight_decay": config.weight_decay, "params": numbers[first:]},
        ],
    }


def loading(found: Pretrained) -> list[str]:
    """Returns the lines that load a network; OUT is the file, as Python's source."""
    config = found.config
    network: Any = make_backbone(config.model)
    if not found.has_decoder:
        return [
            "fine-tune or probe it in MAE's code with --finetune; its networks must get "
            f"patch {network.patch}, tokens of {network.dim} values, {network.depth} blocks and "
            f"{network.heads} heads",
            "  python main_finetune.py --finetune OUT ...",
        ]
    return [
        "load it with",
        "  import functools, torch, models_mae",
        f"  model = models_mae.MaskedAutoencoderViT({config.data.image_size}, {network.patch}, "
        f"embed_dim={network.dim}, depth={network.depth}, num_heads={network.heads},",
        f"    decoder_embed_dim={config.decoder.dim}, decoder_depth={config.decoder.depth}, "
        f"decoder_num_heads={config.decoder.heads}, mlp_ratio=4,",
        f"    norm_layer=functools.partial(torch.nn.LayerNorm, eps={EPSILON}), "
        f"norm_pix_loss={config.mask.normalize_pixels})",
        '  model.load_state_dict(torch.load(OUT, weights_only=True)["model"])',
    ]


def _notes(config: ConfigDict) -> list[str]:
    """Returns what MAE's code does otherwise with this checkpoint, and the command."""
    network: Any = make_backbone(config.model)
    size = network.dim, network.depth, network.heads, network.patch
    name, lines = _NETWORKS.get(size, ""), []
    if not name or config.decoder.to_dict() != _DECODER:
        name = name or "mae_vit_base_patch16"
        decoder = " ".join(f"{key} {config.decoder[key]}" for key in _DECODER)
        lines.append(
            f"note: {name} of MAE's code must get a ViT with tokens of {network.dim} values, "
            f"{network.depth} blocks, {network.heads} heads, patch {network.patch}, and a decoder "
            f"of {decoder} first"
        )
    usual = {"mask.block": 1, "lr_schedule": "cosine", "lr_update": "step"}
    usual |= {"adam_b1": 0.9, "adam_b2": 0.95}
    odd = [f"{key} {value}" for key in usual if (value := _value(config, key)) != usual[key]]
    if odd:
        lines.append(f"note: MAE's code has another recipe than this run: {', '.join(odd)}")
    pixels = " --norm_pix_loss" * bool(config.mask.normalize_pixels)
    rate = config.lr * 256 / config.lr_batch
    return [
        *lines,
        "resume MAE's pretraining with the flags of this run",
        f"  python main_pretrain.py --model {name} --resume OUT --batch_size {config.batch_size} "
        f"--input_size {config.data.image_size} --mask_ratio {config.mask.fraction:g}{pixels} "
        f"--blr {rate:g} --weight_decay {config.weight_decay:g} "
        f"--warmup_epochs {config.warmup_epochs:g} ...",
    ]


def _value(config: ConfigDict, key: str) -> Any:
    folder, _, name = key.rpartition(".")
    return config[folder][name] if folder else config[name]
