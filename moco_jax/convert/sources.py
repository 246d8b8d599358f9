"""What a path holds: which project's weights, and of which network."""

import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
import safetensors
from ml_collections import ConfigDict

from moco_jax.convert import files, huggingface, moco, network, variables
from moco_jax.convert.names import LAYOUTS, Layout
from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained

READ = (
    "a MoCo v1 or v2 checkpoint, a ResNet of torchvision, timm or Hugging Face, or what moco_jax "
    "wrote"
)

# What is known, and not read: by a name that only it has.
_REFUSED = {
    "a detection model": r"(^|\.)(rpn|roi_heads|proposal_generator|bottom_up|fpn|body)\.",
    "a MoCo v3 checkpoint": r"(^|\.)(base_encoder|momentum_encoder)\.",
    "a vision transformer": r"(^|\.)(patch_embed|patch_embeddings|cls_token|class_token)(\.|$)",
    "a ResNet-D of timm, whose stem has three convolutions": r"^conv1\.0\.weight$",
    "the encoder of the CIFAR-10 demo, whose layers have numbers": r"^encoder_[qk]\.net\.",
}
# What is read, likewise.
_READ = {
    "moco": r"^encoder_q\.",
    "huggingface": r"^embedder\.embedder\.convolution\.weight$",
    "torchvision": r"^conv1\.weight$",
}
_WRAPPERS = ("module.", "resnet.")  # of DataParallel, and of Hugging Face's classifiers


class Source(NamedTuple):
    """An encoder to convert.

    Attributes:
      pretrained: the encoder.
      title: what it was recognised as.
      left_out: what its file holds besides.
      checkpoint: the whole of it, where it is a pretraining checkpoint of the reference.
    """

    pretrained: Pretrained
    title: str
    left_out: list[str]
    checkpoint: moco.Checkpoint | None = None


def read(path: pathlib.Path, config: ConfigDict | None = None) -> Source:
    """Returns what is at a path.

    Args:
      path: a file, a workdir, or a folder of Hugging Face's or timm's.
      config: of the experiment, for what another project trained on images that are not prepared
        as ImageNet's are, or to go on with pretraining.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is something else, damaged, or not of the config's network; it says what was
        found and what is allowed.
      ModuleNotFoundError: if torch is needed.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: no such file or folder")
    if path.is_dir():
        weights = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        present = [file for file in weights if file.is_file()]
        if not present:
            return _ours(path, config)
        path = present[0]
    elif _is_ours(path):
        return _ours(path, config)
    content = files.read(path)
    arrays = _state_dict(content, path)
    layout = _recognise(arrays, path)
    if layout == "moco":
        return _moco(content, arrays, path, config)
    if layout == "huggingface":
        huggingface.check(path.with_name("config.json"))
    else:
        _check_not_linear(content, path)
    return _plain(arrays, LAYOUTS[layout], path, config)


def _is_ours(path: pathlib.Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            return (opened.metadata() or {}).get("format") == pretrained.FORMAT
    except safetensors.SafetensorError:
        return False


def _ours(path: pathlib.Path, config: ConfigDict | None) -> Source:
    if config is not None:
        raise ValueError(f"{path} has a config of its own; --config is for weights of others")
    return Source(pretrained.read(path), "an encoder of moco_jax", [])


def _state_dict(content: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, which may lie in it beside a checkpoint's other things."""
    found = content
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not any(isinstance(x, np.ndarray) for x in found.values()):
        keys = variables.listed(map(str, found)) if isinstance(found, dict) else ""
        kind = f"a dict with {keys or 'nothing in it'}" if isinstance(found, dict) else _kind(found)
        raise ValueError(f"{path} holds no state dict, but {kind}; allowed: {READ}")
    odd = [str(name) for name, array in found.items() if not isinstance(array, np.ndarray)]
    if odd:
        raise ValueError(f"{path} holds things that are no arrays: {variables.listed(odd)}")
    for wrapper in _WRAPPERS:
        found = {str(name).removeprefix(wrapper): array for name, array in found.items()}
    return found


def _kind(content: Any) -> str:
    return "a tensor" if isinstance(content, np.ndarray) else f"a {type(content).__name__}"


def _recognise(arrays: dict[str, np.ndarray], path: pathlib.Path) -> str:
    """Returns the name of the layout."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in arrays)

    for title, pattern in _REFUSED.items():
        if has(pattern):
            raise ValueError(f"{path} is {title}, which is not read; allowed: {READ}")
    for layout, pattern in _READ.items():
        if has(pattern):
            return layout
    raise ValueError(
        f"{path} is none that is known: it has {variables.listed(arrays)}; allowed: {READ}"
    )


def _check_not_linear(content: dict[str, Any], path: pathlib.Path) -> None:
    """Raises a ValueError for a checkpoint of linear classification: only `fc` is trained in it."""
    optimizer = content.get("optimizer")
    groups = optimizer.get("param_groups", []) if isinstance(optimizer, dict) else []
    if sum(len(group["params"]) for group in groups) == 2:
        raise ValueError(
            f"{path} is a checkpoint of linear classification (its optimizer has a classifier's "
            "two arrays alone); give the pretraining checkpoint that it was made from"
        )


def _moco(
    content: dict[str, Any], arrays: dict[str, np.ndarray], path: pathlib.Path, config: Any
) -> Source:
    layout, own = LAYOUTS["torchvision"], moco.encoder(arrays, moco.QUERY)
    head = network.head(own)
    if not head:
        raise ValueError(f"{path} has no head of v1 or v2 at {moco.QUERY}fc: it is no MoCo's")
    config = network.config_of(_stem(path), network.backbone(own, layout, str(path)) | head, config)
    shapes = variables.template(config, head=True)
    found = variables.to_ours(own, layout, config, shapes, str(path))
    epoch = int(content.get("epoch") or 0)
    title = "a pretraining checkpoint of MoCo v1 or v2" + (f", epoch {epoch}" if epoch else "")
    whole = moco.Checkpoint(str(path), epoch, arrays, content.get("optimizer") or {})
    return Source(Pretrained(config, found, f"{path} ({title})"), title, whole.besides, whole)


def _plain(
    arrays: dict[str, np.ndarray], layout: Layout, path: pathlib.Path, config: ConfigDict | None
) -> Source:
    classifier = [f"{layout.classifier}.{leaf}" for leaf in ("weight", "bias")]
    left_out = [
        f"the classifier of {len(arrays[n])} classes" for n in classifier[:1] if n in arrays
    ]
    arrays = {name: array for name, array in arrays.items() if name not in classifier}
    model = network.backbone(arrays, layout, str(path))
    config = network.config_of(_stem(path), model, config)
    shapes = variables.template(config, head=False)
    found = variables.to_ours(arrays, layout, config, shapes, str(path))
    return Source(Pretrained(config, found, f"{path} ({layout.title})"), layout.title, left_out)


def _stem(path: pathlib.Path) -> str:
    """Returns a name for an experiment that has none: the file's, or its folder's."""
    stem = path.parent.name if path.stem in ("model", "pytorch_model") else path.name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "imported"
