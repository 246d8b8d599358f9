"""Reads weights; detects the project from the arrays' names and the network from their shapes."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import safetensors
from ml_collections import ConfigDict

from moco_jax.encoders import pretrained
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.pretexts import masks
from moco_jax.weights import (
    decoders,
    files,
    huggingface,
    moco_files,
    network,
    search,
    variables,
    vit,
)
from moco_jax.weights.names import NAMINGS, VITS
from moco_jax.weights.search import Found

ALLOWED = (
    "a checkpoint of MoCo v1, v2, v3 or MAE, a ResNet of torchvision, timm or Hugging Face, a ViT "
    "of timm or Hugging Face, a workdir or an encoder file of moco_jax"
)

# Known but unsupported, each with a pattern that only its names match.
_REFUSED = {
    "a detection model": r"(^|\.)(rpn|roi_heads|proposal_generator|bottom_up|fpn|body)\.",
}
# The same, for files without another encoder.
_REFUSED_ALONE = {
    "a vision transformer with other names than timm's and Hugging Face's": (
        r"(^|\.)(patch_embed|patch_embeddings|cls_token|class_token)(\.|$)"
    ),
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


def read(
    path: pathlib.Path,
    config: ConfigDict | None = None,
    prefix: str | None = None,
    heads: int | None = None,
) -> Source:
    """Returns the encoder at a path.

    Args:
      path: a file, a workdir, or a folder of Hugging Face or timm.
      config: the experiment of another project's weights. It is needed to resume pretraining, and
        if their images are not prepared as for ImageNet.
      prefix: of the encoder's names in another project's weights; None finds it.
      heads: of the attention in another project's ViT, whose file does not contain the number; None
        takes that of the config, or the usual one.

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
    found, version, head = _with_head(found, arrays, path)
    if heads is None and config is not None:
        heads = config.model.heads or None
    about = {}
    if found.naming.endswith("huggingface"):
        about = huggingface.read_config(path.with_name("config.json"), found.naming)
        if found.naming in VITS:
            heads = _heads_of(about, heads, path)
    elif not head:
        _check_not_linear(content, path)
    read_encoder = functools.partial(
        _encoder, path=path, config=config, head=head, heads=heads, v3=version is moco_files.V3
    )
    if version and head and _ends(found, version.query):
        return _read_moco(content, found, arrays, path, version, read_encoder, notes)
    return _read_other(content, found, arrays, path, config, read_encoder, about, head, notes)


def _read_other(
    content: Any,
    found: Found,
    arrays: dict[str, Any],
    path: pathlib.Path,
    config: ConfigDict | None,
    read_encoder: Callable[..., tuple[Pretrained, tuple[str, ...]]],
    about: dict[str, Any],
    head: dict[str, Any],
    notes: tuple[str, ...],
) -> Source:
    """Returns an encoder that is not the query encoder of a whole checkpoint of MoCo."""
    naming, title = NAMINGS[found.naming], NAMINGS[found.naming].title
    decoder = decoders.find(found, arrays) if config is None or masks(config) else {}
    if decoder:
        flags = moco_files.part(content, "args")
        about = about or {key: flags[key] for key in decoders.FLAGS if key in flags}
        title += " with the decoder of a masked autoencoder"
    found, left_out = search.without_heads(found, keep=naming.classifier if head else "")
    classes = _classes(found, arrays)
    left_out = [*left_out, *search.others(found, arrays)]
    if classes:
        left_out = [name for name in left_out if name.rpartition(".")[2] not in _CLASSIFIERS]
    encoder, more = read_encoder(found, title=title, decoder=decoder, about=about)
    if encoder.has_decoder:
        left_out = [name for name in left_out if not search.decodes(name)]
    if found.naming in VITS and "layer_norm_eps" in about:
        more += vit.epsilon_notes(about["layer_norm_eps"])
    checkpoint = None
    if encoder.has_decoder and found.naming == "vit":
        checkpoint = _mae_checkpoint(content, found, arrays, path)
        title += f", epoch {checkpoint.epoch}" if checkpoint.epoch else ""
    return Source(encoder, title, [*classes, *left_out], checkpoint, (*notes, *more))


def _mae_checkpoint(
    content: Any, found: Found, arrays: dict[str, Any], path: pathlib.Path
) -> moco_files.Checkpoint:
    """Returns the whole checkpoint of MAE's code, which counts its epochs from 0."""
    epoch = content.get("epoch") if isinstance(content, dict) else None
    done = epoch + 1 if type(epoch) is int and epoch >= 0 else 0
    base = found.prefix
    own = {k.removeprefix(base): x for k, x in arrays.items() if k.startswith(base)}
    optimizer = moco_files.part(content, "optimizer")
    return moco_files.Checkpoint(str(path), done, own, optimizer, moco_files.MAE)


def _with_head(
    found: Found, arrays: dict[str, Any], path: pathlib.Path
) -> tuple[Found, moco_files.Version | None, dict[str, Any]]:
    """Returns an encoder of a reference with its predictor, and its head's values of `model`.

    There is no version and no head without the names of a reference.
    """
    version = next(
        (v for v in moco_files.VERSIONS if _ends(found, v.query) or _ends(found, v.key)), None
    )
    if version is None or version is not moco_files.V3:
        return found, version, network.head(found.arrays) if version else {}
    predictor = {}
    if _ends(found, version.query):
        base = found.prefix.removesuffix(version.query)
        predictor = {
            name.removeprefix(base): array
            for name, array in arrays.items()
            if name.startswith(f"{base}predictor.")
        }
    whole = found.arrays | predictor
    head = network.batch_norm_head(whole, NAMINGS[found.naming], _place(found, path))
    return (found._replace(arrays=whole) if head else found), version, head


def _ends(found: Found, prefix: str) -> bool:
    return found.prefix.removesuffix(_DEMO).endswith(prefix)


def _heads_of(about: dict[str, Any], given: int | None, path: pathlib.Path) -> int:
    """Returns the number of attention heads in a config.json."""
    heads = about["num_attention_heads"]
    if given is not None and given != heads:
        raise ValueError(
            f"{path}: its config.json has {heads} attention heads, but {given} are given "
            "by --heads or model.heads"
        )
    return heads


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
    for title, pattern in (_REFUSED if found else _REFUSED | _REFUSED_ALONE).items():
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
    if array is None:  # Hugging Face's is beside its `resnet.` or `vit.`
        array = arrays.get(found.prefix.removesuffix("resnet.").removesuffix("vit.") + weight)
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
    version: moco_files.Version,
    read_encoder: Callable[..., tuple[Pretrained, tuple[str, ...]]],
    notes: tuple[str, ...],
) -> Source:
    """Returns the query encoder of a checkpoint of a reference, and the whole checkpoint."""
    epoch = content.get("epoch") if isinstance(content, dict) else None
    epoch = epoch if isinstance(epoch, int) and epoch > 0 else 0
    title = f"a pretraining checkpoint of {version.title}" + (f", epoch {epoch}" if epoch else "")
    encoder, more = read_encoder(found, title=title)

    base = found.prefix.removesuffix(_DEMO).removesuffix(version.query)
    keys = [
        one
        for one in search.encoders(arrays)
        if one.prefix.removesuffix(_DEMO) == base + version.key
    ]
    whole = {name.removeprefix(base): x for name, x in arrays.items() if name.startswith(base)}
    own = {
        name: x for name, x in whole.items() if not name.startswith((version.query, version.key))
    }
    ours = {name: x for name, x in found.arrays.items() if not name.startswith("predictor.")}
    encoders = {version.query + name: x for name, x in ours.items()}
    encoders |= {version.key + name: x for one in keys for name, x in one.arrays.items()}
    optimizer = moco_files.part(content, "optimizer")
    checkpoint = moco_files.Checkpoint(str(path), epoch, encoders | own, optimizer, version)
    left_out = [name for name in search.others(found, arrays) if not _belongs(name, base, version)]
    left_out = [*checkpoint.other_parts, *left_out]
    return Source(encoder, title, left_out, checkpoint, (*notes, *more))


def _belongs(name: str, base: str, version: moco_files.Version) -> bool:
    """Returns whether a module is one of the reference's own parts besides the query encoder."""
    own = (version.key.rstrip("."), *version.others)
    return name == "optimizer" or name in [base + part for part in own]


def _place(found: Found, path: pathlib.Path) -> str:
    return f"{path}, prefix {found.shown}" if found.prefix else str(path)


def _encoder(
    found: Found,
    *,
    path: pathlib.Path,
    config: ConfigDict | None,
    title: str,
    head: dict[str, Any],
    heads: int | None,
    v3: bool,
    decoder: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
) -> tuple[Pretrained, tuple[str, ...]]:
    """Returns the encoder, and lines about what its arrays do not show.

    Args:
      head: values of `config.model` of its head, {} without a head.
      heads: of a ViT's attention, None if they are not known.
      v3: whether the code of MoCo v3 wrote the file.
      decoder: the arrays of `decoders.find`.
      about: what the file contains besides arrays, see `decoders.recognise`.
    """
    place, naming = _place(found, path), NAMINGS[found.naming]
    arrays, size, notes, more = found.arrays, 0, (), decoders.Recognised()
    if found.naming in VITS:
        model, size, arrays, notes = vit.recognise(
            arrays, naming, place, heads=heads, v3=v3, mae=bool(decoder)
        )
        if decoder:
            more = decoders.recognise(decoder, naming, model, size, about or {}, config)
    else:
        model = network.backbone(arrays, naming, place)
    name = _experiment_name(path)
    config = network.config_of(name, model | head, config, size, more.values)
    shapes = variables.template(config, head=bool(head), decoder=bool(more.arrays))
    converted = variables.to_flax(arrays | more.arrays, naming, config, shapes, place)
    return Pretrained(config, converted, f"{place} ({title})"), (*notes, *more.notes)


def _experiment_name(path: pathlib.Path) -> str:
    """Returns the file's name, or its folder's if the file has a library's usual name."""
    stem = path.parent.name if path.stem in ("model", "pytorch_model") else path.name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "imported"
