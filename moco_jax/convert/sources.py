"""Reads weights; detects the project from the arrays' names and the network from their shapes."""

import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
import safetensors
from ml_collections import ConfigDict

from moco_jax.convert import files, huggingface, moco, network, variables
from moco_jax.convert.names import NAMINGS, Naming
from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained

ALLOWED = (
    "a MoCo v1 or v2 checkpoint, a ResNet of torchvision, timm or Hugging Face, a workdir or an "
    "encoder file of moco_jax"
)

# Known but unsupported, each with a pattern that only its names match.
_UNSUPPORTED = {
    "a detection model": r"(^|\.)(rpn|roi_heads|proposal_generator|bottom_up|fpn|body)\.",
    "a MoCo v3 checkpoint": r"(^|\.)(base_encoder|momentum_encoder)\.",
    "a vision transformer": r"(^|\.)(patch_embed|patch_embeddings|cls_token|class_token)(\.|$)",
    "a ResNet-D of timm, whose stem has three convolutions": r"^conv1\.0\.weight$",
    "the encoder of the CIFAR-10 demo, whose layers have numbers": r"^encoder_[qk]\.net\.",
}
# Supported, each with a pattern that only its names match.
_FORMATS = {
    "moco": r"^encoder_q\.",
    "huggingface": r"^embedder\.embedder\.convolution\.weight$",
    "torchvision": r"^conv1\.weight$",
}
_WRAPPERS = ("module.", "resnet.")  # of DataParallel and of Hugging Face's classifiers


class Source(NamedTuple):
    """An encoder to convert."""

    pretrained: Pretrained
    title: str  # the recognised kind of weights
    left_out: list[str]  # the parts of the file that are not in `pretrained`
    checkpoint: moco.Checkpoint | None = None  # the whole file, if it is the reference's


def read(path: pathlib.Path, config: ConfigDict | None = None) -> Source:
    """Returns the encoder at a path.

    Args:
      path: a file, a workdir, or a folder of Hugging Face or timm.
      config: the experiment of another project's weights. It is needed to resume pretraining, and
        if their images are not prepared as for ImageNet.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the weights are unsupported, damaged, or do not match the config's model.
      ModuleNotFoundError: if the file needs torch and torch is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; --source must be a file, a workdir or a folder"
        )
    if path.is_dir():
        weights = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        present = [file for file in weights if file.is_file()]
        if not present:
            return _read_moco_jax(path, config)
        path = present[0]
    elif _is_moco_jax(path):
        return _read_moco_jax(path, config)
    content = files.read(path)
    arrays = _state_dict(content, path)
    kind = _format_of(arrays, path)
    if kind == "moco":
        return _read_moco(content, arrays, path, config)
    if kind == "huggingface":
        huggingface.check_config(path.with_name("config.json"))
    else:
        _check_not_linear(content, path)
    return _read_backbone(arrays, NAMINGS[kind], path, config)


def _is_moco_jax(path: pathlib.Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            return (opened.metadata() or {}).get("format") == pretrained.FORMAT
    except safetensors.SafetensorError:
        return False


def _read_moco_jax(path: pathlib.Path, config: ConfigDict | None) -> Source:
    if config is not None:
        raise ValueError(
            f"{path} contains its own config; --config is for weights of other projects"
        )
    return Source(pretrained.read(path), "an encoder of moco_jax", [])


def _state_dict(content: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the named arrays of a file, without the other parts of a checkpoint."""
    found = content
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not any(isinstance(x, np.ndarray) for x in found.values()):
        kind = "a tensor" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
        if isinstance(found, dict):
            kind = f"a dict with {variables.listed(map(str, found)) or 'no keys'}"
        raise ValueError(f"{path} contains no state dict but {kind}; allowed: {ALLOWED}")
    odd = [str(name) for name, array in found.items() if not isinstance(array, np.ndarray)]
    if odd:
        raise ValueError(f"{path} contains values that are not arrays: {variables.listed(odd)}")
    for wrapper in _WRAPPERS:
        found = {str(name).removeprefix(wrapper): array for name, array in found.items()}
    return found


def _format_of(arrays: dict[str, np.ndarray], path: pathlib.Path) -> str:
    """Returns the key in `_FORMATS` that the arrays' names match."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in arrays)

    for title, pattern in _UNSUPPORTED.items():
        if has(pattern):
            raise ValueError(f"{path} is {title}, which is not supported; allowed: {ALLOWED}")
    for kind, pattern in _FORMATS.items():
        if has(pattern):
            return kind
    raise ValueError(
        f"{path} has an unknown format with {variables.listed(arrays)}; allowed: {ALLOWED}"
    )


def _check_not_linear(content: dict[str, Any], path: pathlib.Path) -> None:
    """Raises a ValueError for a checkpoint of linear classification, which trains only `fc`."""
    optimizer = content.get("optimizer")
    groups = optimizer.get("param_groups", []) if isinstance(optimizer, dict) else []
    if sum(len(group["params"]) for group in groups) == 2:
        raise ValueError(
            f"{path} is a checkpoint of linear classification (its optimizer has only a "
            "classifier's two arrays); set --source to its pretraining checkpoint"
        )


def _read_moco(
    content: dict[str, Any], arrays: dict[str, np.ndarray], path: pathlib.Path, config: Any
) -> Source:
    query = moco.encoder(arrays, moco.QUERY)
    head = network.head(query)
    if not head:
        raise ValueError(f"{path} is not a MoCo v1 or v2 checkpoint: it has no head {moco.QUERY}fc")
    epoch = int(content.get("epoch") or 0)
    title = "a pretraining checkpoint of MoCo v1 or v2" + (f", epoch {epoch}" if epoch else "")
    encoder = _encoder(query, NAMINGS["torchvision"], path, config, title, head)
    checkpoint = moco.Checkpoint(str(path), epoch, arrays, content.get("optimizer") or {})
    return Source(encoder, title, checkpoint.other_parts, checkpoint)


def _read_backbone(
    arrays: dict[str, np.ndarray], naming: Naming, path: pathlib.Path, config: ConfigDict | None
) -> Source:
    weight, bias = (f"{naming.classifier}.{leaf}" for leaf in ("weight", "bias"))
    left_out = [f"the classifier of {len(arrays[weight])} classes"] if weight in arrays else []
    backbone = {name: array for name, array in arrays.items() if name not in (weight, bias)}
    encoder = _encoder(backbone, naming, path, config, naming.title, {})
    return Source(encoder, naming.title, left_out)


def _encoder(
    arrays: dict[str, np.ndarray],
    naming: Naming,
    path: pathlib.Path,
    config: ConfigDict | None,
    title: str,
    head: dict[str, Any],
) -> Pretrained:
    """Returns the encoder; `head` has its values of `config.model`, {} without a head."""
    model = network.backbone(arrays, naming, str(path)) | head
    config = network.config_of(_experiment_name(path), model, config)
    shapes = variables.template(config, head=bool(head))
    found = variables.to_flax(arrays, naming, config, shapes, str(path))
    return Pretrained(config, found, f"{path} ({title})")


def _experiment_name(path: pathlib.Path) -> str:
    """Returns the file's name, or its folder's if the file has a library's usual name."""
    stem = path.parent.name if path.stem in ("model", "pytorch_model") else path.name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "imported"
