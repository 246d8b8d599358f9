"""Reads weights; detects the project from the arrays' names and the network from their shapes."""

import pathlib
import re
from typing import Any, NamedTuple

import safetensors
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.weights import files, huggingface, moco_files, network, search, variables
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.search import Found

ALLOWED = (
    "a MoCo v1 or v2 checkpoint, a ResNet of torchvision, timm or Hugging Face, a workdir or an "
    "encoder file of moco_jax"
)

# Known but unsupported, each with a pattern that only its names match.
_REFUSED = {
    "a detection model": r"(^|\.)(rpn|roi_heads|proposal_generator|bottom_up|fpn|body)\.",
    "a MoCo v3 checkpoint": r"(^|\.)base_encoder\.",
}
# The same, for files without another encoder.
_REFUSED_ALONE = {
    "a MoCo v3 checkpoint": r"(^|\.)momentum_encoder\.",
    "a vision transformer": r"(^|\.)(patch_embed|patch_embeddings|cls_token|class_token)(\.|$)",
    "a ResNet-D of timm, whose stem has three convolutions": r"(^|\.)conv1\.0\.weight$",
}
_CLASSIFIERS = {naming.classifier.partition(".")[0] for naming in NAMINGS.values()}
_DEMO = "net."  # the numbered Sequential in the encoders of the CIFAR-10 demo


class Source(NamedTuple):
    """An encoder to convert."""

    pretrained: Pretrained
    title: str  # the recognised kind of weights
    left_out: list[str]  # the parts of the file that are not in `pretrained`
    checkpoint: moco_files.Checkpoint | None = None  # the whole file, if it is the reference's
    notes: tuple[str, ...] = ()  # lines about how the encoder was found
    path: pathlib.Path | None = None  # of moco_jax's own encoders


def read(path: pathlib.Path, config: ConfigDict | None = None, prefix: str | None = None) -> Source:
    """Returns the encoder at a path.

    Args:
      path: a file, a workdir, or a folder of Hugging Face or timm.
      config: the experiment of another project's weights. It is needed to resume pretraining, and
        if their images are not prepared as for ImageNet.
      prefix: of the encoder's names in another project's weights; None finds it.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the weights are unsupported, damaged, or do not match the config's model.
      ModuleNotFoundError: if the file needs torch and torch is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; allowed: a file, a workdir or a folder of weights"
        )
    if path.is_dir():
        weights = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        present = [file for file in weights if file.is_file()]
        if not present:
            return _read_moco_jax(path, config, prefix)
        path = present[0]
    elif not path.is_file():
        raise ValueError(f"{path} is not a regular file; allowed: a file or a folder")
    elif _is_moco_jax(path):
        return _read_moco_jax(path, config, prefix)
    content = files.read(path)
    found, arrays, notes = _find(content, path, prefix)
    parts, title = found.prefix.removesuffix(_DEMO), NAMINGS[found.naming].title
    head = network.head(found.arrays) if parts.endswith((moco_files.QUERY, moco_files.KEY)) else {}
    if head and parts.endswith(moco_files.QUERY):
        return _read_moco(content, found, arrays, path, config, notes)
    if found.naming == "huggingface":
        huggingface.check_config(path.with_name("config.json"))
    elif not head:
        _check_not_linear(content, path)
    found, left_out = search.without_heads(found, keep="fc" if head else "")
    classes = _classes(found, arrays)
    left_out = [*left_out, *search.others(found, arrays)]
    if classes:
        left_out = [name for name in left_out if name.rpartition(".")[2] not in _CLASSIFIERS]
    encoder = _encoder(found, path, config, title, head)
    return Source(encoder, title, [*classes, *left_out], notes=notes)


def _is_moco_jax(path: pathlib.Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            return (opened.metadata() or {}).get("format") == pretrained.FORMAT
    except (safetensors.SafetensorError, OSError):
        return False


def _read_moco_jax(path: pathlib.Path, config: ConfigDict | None, prefix: str | None) -> Source:
    given = {"--config": config, "--prefix": prefix}
    wrong = [flag for flag, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{path} contains its own config and one encoder; {wrong[0]} is for weights of other "
            "projects"
        )
    return Source(pretrained.read(path), "an encoder of moco_jax", [], path=path)


def _find(
    content: Any, path: pathlib.Path, prefix: str | None
) -> tuple[Found, dict[str, Any], tuple[str, ...]]:
    """Returns the encoder of a file, all its arrays by path, and lines to print."""
    try:
        arrays = search.flatten(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not arrays:
        kind = f"a {type(content).__name__}"
        if isinstance(content, dict):
            kind = f"a dict with {variables.listed(map(str, content)) or 'no keys'}"
        raise ValueError(f"{path} contains no state dict but {kind}; allowed: {ALLOWED}")
    found = search.encoders(arrays)
    others = [one for one in found if "momentum_encoder." not in one.prefix]
    for title, pattern in (_REFUSED if others else _REFUSED | _REFUSED_ALONE).items():
        if any(re.search(pattern, name) for name in arrays):
            raise ValueError(f"{path} is {title}, which is not supported; allowed: {ALLOWED}")
    if not found:
        raise ValueError(
            f"{path} has an unknown format with {variables.listed(arrays)}; allowed: {ALLOWED}"
        )
    chosen = search.choose(found, prefix, path)
    return chosen, arrays, tuple(search.describe(chosen, found))


def _classes(found: Found, arrays: dict[str, Any]) -> list[str]:
    """Returns a phrase for the classifier of a supervised network, if there is one."""
    weight = f"{NAMINGS[found.naming].classifier}.weight"
    array = arrays.get(found.prefix + weight)
    if array is None:  # Hugging Face's is beside its `resnet.`
        array = arrays.get(found.prefix.removesuffix("resnet.") + weight)
    return (
        [f"the classifier of {array.shape[0]} classes"] if array is not None and array.shape else []
    )


def _check_not_linear(content: Any, path: pathlib.Path) -> None:
    """Raises a ValueError for a checkpoint of linear classification, which trains only `fc`."""
    if len(moco_files.parameters(moco_files.part(content, "optimizer"))) == 2:
        raise ValueError(
            f"{path} is a checkpoint of linear classification (its optimizer has only a "
            "classifier's two arrays); give its pretraining checkpoint"
        )


def _read_moco(
    content: Any,
    found: Found,
    arrays: dict[str, Any],
    path: pathlib.Path,
    config: ConfigDict | None,
    notes: tuple[str, ...],
) -> Source:
    """Returns the query encoder of a checkpoint of the reference, and the whole checkpoint."""
    epoch = content.get("epoch") if isinstance(content, dict) else None
    epoch = epoch if isinstance(epoch, int) and epoch > 0 else 0
    title = "a pretraining checkpoint of MoCo v1 or v2" + (f", epoch {epoch}" if epoch else "")
    encoder = _encoder(found, path, config, title, network.head(found.arrays))

    base = found.prefix.removesuffix(_DEMO).removesuffix(moco_files.QUERY)
    keys = [
        one
        for one in search.encoders(arrays)
        if one.prefix.removesuffix(_DEMO) == base + moco_files.KEY
    ]
    whole = {name.removeprefix(base): x for name, x in arrays.items() if name.startswith(base)}
    own = {
        name: x
        for name, x in whole.items()
        if not name.startswith((moco_files.QUERY, moco_files.KEY))
    }
    own |= {moco_files.QUERY + name: x for name, x in found.arrays.items()}
    own |= {moco_files.KEY + name: x for one in keys for name, x in one.arrays.items()}
    checkpoint = moco_files.Checkpoint(str(path), epoch, own, moco_files.part(content, "optimizer"))
    left_out = [name for name in search.others(found, arrays) if not _belongs(name, base)]
    return Source(encoder, title, [*checkpoint.other_parts, *left_out], checkpoint, notes)


def _belongs(name: str, base: str) -> bool:
    """Returns whether a module is one of the reference's own parts besides the query encoder."""
    own = (moco_files.KEY.rstrip("."), "queue", "queue_ptr")
    return name == "optimizer" or name in [base + part for part in own]


def _encoder(
    found: Found, path: pathlib.Path, config: ConfigDict | None, title: str, head: dict[str, Any]
) -> Pretrained:
    """Returns the encoder; `head` has its values of `config.model`, {} without a head."""
    place = f"{path}, prefix {found.shown}" if found.prefix else str(path)
    naming = NAMINGS[found.naming]
    model = network.backbone(found.arrays, naming, place) | head
    config = network.config_of(_experiment_name(path), model, config)
    shapes = variables.template(config, head=bool(head))
    converted = variables.to_flax(found.arrays, naming, config, shapes, place)
    return Pretrained(config, converted, f"{place} ({title})")


def _experiment_name(path: pathlib.Path) -> str:
    """Returns the file's name, or its folder's if the file has a library's usual name."""
    stem = path.parent.name if path.stem in ("model", "pytorch_model") else path.name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "imported"
