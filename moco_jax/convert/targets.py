"""Writes an encoder in the formats of `TARGETS`, one function per format."""

import json
import pathlib
import pickle
import shlex
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.traverse_util
from ml_collections import ConfigDict

from moco_jax.convert import (
    detectron2,
    files,
    mae,
    moco,
    moco_v3,
    reference,
    reference_mae,
    reference_v3,
)
from moco_jax.encoders import pretrained
from moco_jax.models.backbones import make_backbone
from moco_jax.models.vit import NETWORKS
from moco_jax.weights import huggingface, torch_files, variables, vit
from moco_jax.weights.moco_files import MAE, V2, V3, version_of
from moco_jax.weights.names import NAMINGS, head_problem
from moco_jax.weights.sources import Source


class Target(NamedTuple):
    """A format for an encoder."""

    # (source, temporary path, final path, number of training images or None) -> lines to print. It
    # writes to the temporary path.
    write: Callable[[Source, pathlib.Path, pathlib.Path, int | None], list[str]]
    suffixes: tuple[str, ...] = ()  # allowed endings of the file's name; () for a folder
    keeps: tuple[str, ...] = ()  # the parts of the encoder that it contains besides the backbone
    # (config, names of the encoder's parts) -> what the format can't express, "" if it can
    problem: Callable[[ConfigDict, Collection[str]], str] = lambda config, parts: ""


def write(source: Source, to: str, out: pathlib.Path, images: int | None = None) -> list[str]:
    """Writes an encoder and returns lines that say how to load it; an error leaves no file.

    Args:
      to: one of `TARGETS`.
      out: file or folder, which must not exist.
      images: number of training images, to resume pretraining; see `moco.write_workdir`.

    Raises:
      ValueError: if the format can't express the network, or `out` exists or has a wrong suffix.
      ModuleNotFoundError: if the format needs torch and torch is not installed.
    """
    check(to, out)
    check_network(to, source)
    flat = flax.traverse_util.flatten_dict(source.pretrained.variables, sep="/")
    variables.check_values(flat, source.pretrained.source)
    with files.atomic_output(out) as temporary:
        return TARGETS[to].write(source, temporary, out, images)


def check(to: str, out: pathlib.Path) -> None:
    """Raises a ValueError for an unknown target or an invalid `out`."""
    if to not in TARGETS:
        raise ValueError(f"unknown --to={to}; allowed: {', '.join(TARGETS)}")
    suffixes = TARGETS[to].suffixes
    if suffixes and not out.name.endswith(suffixes):
        raise ValueError(f"--out={out} must end in {' or '.join(suffixes)} for --to={to}")
    files.check_fresh(out)


def check_network(to: str, source: Source) -> None:
    """Raises a ValueError if a target can't express the network; it names those that can."""
    config, parts = source.pretrained.config, source.pretrained.variables["params"].keys()
    problem = TARGETS[to].problem(config, parts)
    if problem:
        able = expressible(config, parts)
        if source.checkpoint is None:
            able.remove("workdir")
        raise ValueError(f"--to={to}: {problem}; allowed for this network: {', '.join(able)}")


def expressible(config: ConfigDict, parts: Collection[str]) -> list[str]:
    """Returns the targets that can express an encoder with these parts."""
    return [name for name, target in TARGETS.items() if not target.problem(config, parts)]


def left_out(source: Source, to: str) -> list[str]:
    """Returns the parts of a source that a target does not contain."""
    if to == "workdir":
        return []
    kept, parts = ("backbone", *TARGETS[to].keeps), source.pretrained.variables["params"]
    return [*source.left_out, *(f"the {part}" for part in parts if part not in kept)]


def _moco_jax(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    pretrained.write(file, source.pretrained)
    return [
        "load it with",
        "  import moco_jax",
        f"  encoder = moco_jax.load({_text(out)})",
    ]


def _workdir(source: Source, folder: pathlib.Path, out: pathlib.Path, images: int | None):
    if source.checkpoint is None:
        raise ValueError(
            "--to=workdir needs a pretraining checkpoint of MoCo v1, v2, v3 or MAE; "
            f"{source.pretrained.source} is {source.title}"
        )
    write_workdir = _WORKDIRS[source.checkpoint.version]
    return [
        *write_workdir(source.checkpoint, source.pretrained.config, folder, images),
        "resume pretraining with",
        f"  python -m moco_jax.main --config=... {shlex.quote(f'--workdir={out}')}",
    ]


def _torchvision(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    config = source.pretrained.config
    torch_files.write(file, _arrays(source, "torchvision"))
    built = f"torchvision.models.{config.model.name}()"
    if config.model.name == "resnet10":
        built = "torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])"
    return [
        "load it with",
        "  import torch, torchvision",
        f"  model = {built}",
        "  model.fc = torch.nn.Identity()  # replaces the classifier",
        *_small_stem(config),
        f"  model.load_state_dict(torch.load({_text(out)}, weights_only=True))",
    ]


def _timm(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    config = source.pretrained.config
    if config.model.name in NETWORKS:
        return _timm_vit(source, file, out)
    files.write_safetensors(file, _arrays(source, "torchvision"))
    built = f'timm.create_model("{config.model.name}", num_classes=0)'
    if config.model.name == "resnet10":
        built = "timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=0)"
    return [
        "load it with",
        "  import timm, torch, safetensors.torch",
        f"  model = {built}",
        *_small_stem(config),
        f"  model.load_state_dict(safetensors.torch.load_file({_text(out)}))",
    ]


def _timm_vit(source: Source, file: pathlib.Path, out: pathlib.Path) -> list[str]:
    config = source.pretrained.config
    network: Any = make_backbone(config.model)
    files.write_safetensors(file, vit.timm_arrays(_arrays(source, "vit"), network.pool))
    like = f"{config.model.name}_patch{14 if config.model.name == 'vit_huge' else 16}_224"
    pool = "token" if network.pool == "cls" else "avg"
    return [
        "load it with",
        "  import functools, timm, torch, safetensors.torch",
        f'  model = timm.create_model("{like}", num_classes=0, global_pool="{pool}",',
        f"    img_size={config.data.image_size}, patch_size={network.patch}, "
        f"embed_dim={network.dim}, depth={network.depth}, num_heads={network.heads},",
        f"    norm_layer=functools.partial(torch.nn.LayerNorm, eps={huggingface.EPSILON}))",
        f"  model.load_state_dict(safetensors.torch.load_file({_text(out)}))",
    ]


def _huggingface(source: Source, folder: pathlib.Path, out: pathlib.Path, images: int | None):
    config = source.pretrained.config
    is_vit = config.model.name in NETWORKS
    arrays = _arrays(source, "vit_huggingface" if is_vit else "huggingface")
    folder.mkdir()
    content = json.dumps(huggingface.make_config(config), indent=2)
    (folder / "config.json").write_text(content + "\n")
    files.write_safetensors(folder / "model.safetensors", huggingface.split(arrays))
    if is_vit:
        used = "model(images).last_hidden_state[:, 0]"
        if config.model.pool == "mean":
            tokens = "model(images, output_hidden_states=True).hidden_states[-1]"
            used = f"model.layernorm({tokens}[:, 1:].mean(1))"
        return [
            "load it with",
            "  import transformers",
            "  model = transformers.ViTModel.from_pretrained(",
            f"    {_text(out)}, add_pooling_layer=False)",
            f"its features are {used}",
        ]
    return [
        "load it with",
        "  import transformers",
        f"  model = transformers.AutoModel.from_pretrained({_text(out)})",
    ]


def _vitmae(source: Source, folder: pathlib.Path, out: pathlib.Path, images: int | None):
    arrays = huggingface.split(_arrays(source, "vit_huggingface", "decoder"))
    folder.mkdir()
    content = json.dumps(huggingface.make_mae_config(source.pretrained.config), indent=2)
    (folder / "config.json").write_text(content + "\n")
    named = {k if k.startswith("decoder.") else f"vit.{k}": x for k, x in arrays.items()}
    files.write_safetensors(folder / "model.safetensors", named)
    return [
        "load it with",
        "  import transformers",
        f"  model = transformers.ViTMAEForPreTraining.from_pretrained({_text(out)})",
        "features of whole images are encoder(images).last_hidden_state[:, 0] of",
        f"  encoder = transformers.ViTMAEModel.from_pretrained({_text(out)}, mask_ratio=0.0)",
    ]


def _detectron2(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    settings = detectron2.settings(source.pretrained.config)
    content = {
        "model": _arrays(source, "detectron2"),
        "__author__": "moco_jax",
        "matching_heuristics": True,  # Detectron2 finds the backbone in the detector
    }
    file.write_bytes(pickle.dumps(content))
    return [
        "set in Detectron2's config",
        f"  MODEL.WEIGHTS: {out}",
        *(f"  {line}" for line in settings),
        "the reference fine-tunes with MODEL.RESNETS.NORM: SyncBN and MODEL.BACKBONE.FREEZE_AT: 0",
    ]


def _moco(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    config, folder = source.pretrained.config, source.path
    writes = _REFERENCES[version_of(config.model)]
    if folder is None or folder.is_file():
        reason = f"{source.pretrained.source} has no whole train state"
    elif problem := writes.problem(config):
        reason = f"the reference can't continue a run with {problem}"
    else:
        # The encoder comes from the same checkpoint: a newer one may lack a whole train state.
        saved = reference.read_state(folder)
        images, encoder = images or saved.about.get("images"), saved.encoder
        content, lines = writes.checkpoint(saved.state, encoder.config, images, encoder.source)
        torch_files.write(file, content)
        return [line.replace("OUT", shlex.quote(str(out))) for line in lines]
    return [f"only the encoder is written: {reason}", *_moco_encoder(source, file, out, images)]


def _mae(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    found, folder = source.pretrained, source.path
    if folder is None or folder.is_file():
        reason = f"{found.source} has no whole train state"
    elif problem := reference_mae.problem(found.config):
        reason = f"MAE's code can't continue a run with {problem}"
    else:
        saved = reference.read_state(folder)  # see `_moco`
        images, encoder = images or saved.about.get("images"), saved.encoder
        content, lines = reference_mae.checkpoint(
            saved.state, encoder.config, images, encoder.source
        )
        torch_files.write(file, content)
        return [line.replace("OUT", shlex.quote(str(out))) for line in lines]
    arrays = reference.ordered(_arrays(source, "vit", "decoder"))
    torch_files.write(file, {"model": arrays})
    lines = [line.replace("OUT", _text(out)) for line in reference_mae.loading(found)]
    return [f"only the network is written: {reason}", *lines]


def _moco_encoder(source: Source, file: pathlib.Path, out: pathlib.Path, images: int | None):
    config, trees = source.pretrained.config, source.pretrained.variables
    query = version_of(config.model).query
    params = {part: tree for part, tree in trees["params"].items() if part != "decoder"}
    arrays = reference.torch_arrays(params, trees.get("batch_stats", {}), config, 0)
    state = {
        f"module.{'' if name.startswith('predictor.') else query}{name}": array
        for name, array in arrays.items()
    }
    name = reference_v3.architecture(config)
    torch_files.write(file, {"arch": name, "state_dict": state})
    return [
        "it contains the query encoder only; run the reference's linear classification with",
        f"  python main_lincls.py -a {name} --pretrained {shlex.quote(str(out))} ...",
    ]


# The code of MoCo's and MAE's authors: checkpoints from its format and to it.
_WORKDIRS = {V2: moco.write_workdir, V3: moco_v3.write_workdir, MAE: mae.write_workdir}
_REFERENCES = {V2: reference, V3: reference_v3}


def _width(project: str, *, vits: bool = True) -> Callable[[ConfigDict, Collection[str]], str]:
    """Returns the problem of a project whose ResNets have one width.

    Args:
      vits: whether it has our ViTs, of any width.
    """

    def problem(config: ConfigDict, parts: Collection[str]) -> str:
        width = config.model.width
        if config.model.name in NETWORKS:
            return "" if vits else f"{project} has no ViT with these names"
        return "" if width == 1 else f"a ResNet of {project} must have model.width=1, got {width:g}"

    return problem


def _timm_problem(config: ConfigDict, parts: Collection[str]) -> str:
    if config.model.name in NETWORKS and config.model.stem != "patch":
        return f"timm's ViT can't express stem {config.model.stem!r}"
    return _width("timm")(config, parts)


def _mae_problem(config: ConfigDict, parts: Collection[str]) -> str:
    if config.model.name not in NETWORKS:
        return "MAE's code has ViTs only"
    stem = config.model.stem
    return "" if stem == "patch" else f"MAE's ViT can't express stem {stem!r}"


def _vitmae_problem(config: ConfigDict, parts: Collection[str]) -> str:
    if "decoder" not in parts:
        return "a masked autoencoder has a decoder, which this encoder lacks"
    return huggingface.problem(config)


def _reference_problem(config: ConfigDict, parts: Collection[str]) -> str:
    problem = _width("the reference")(config, parts)
    if problem or "head" not in parts:
        return problem
    return head_problem(config.model.head)


_HEADS = ("head", "predictor")
TARGETS = {
    "moco_jax": Target(_moco_jax, (".safetensors",), keeps=(*_HEADS, "decoder")),
    "workdir": Target(_workdir),
    "torchvision": Target(_torchvision, (".pth", ".pt"), problem=_width("torchvision", vits=False)),
    "timm": Target(_timm, (".safetensors",), problem=_timm_problem),
    "huggingface": Target(_huggingface, problem=lambda config, _: huggingface.problem(config)),
    "vitmae": Target(_vitmae, keeps=("decoder",), problem=_vitmae_problem),
    "detectron2": Target(
        _detectron2, (".pkl",), problem=lambda config, _: detectron2.problem(config)
    ),
    "moco": Target(_moco, (".pth.tar", ".pth"), keeps=_HEADS, problem=_reference_problem),
    "moco_encoder": Target(
        _moco_encoder, (".pth.tar", ".pth"), keeps=_HEADS, problem=_reference_problem
    ),
    "mae": Target(_mae, (".pth",), keeps=("decoder",), problem=_mae_problem),
}


def _arrays(source: Source, naming: str, *others: str):
    """Returns the arrays of the backbone and of other parts under the names of a key in `NAMINGS`.

    Parts that the encoder does not have are left out.
    """
    found = source.pretrained
    trees = vit.with_positions(found.variables, found.config)
    kept = {
        kind: {part: tree[part] for part in ("backbone", *others) if part in tree}
        for kind, tree in trees.items()
    }
    return variables.to_torch(kept, NAMINGS[naming], found.config)


def _text(path: pathlib.Path) -> str:
    """Returns a path as Python's source."""
    return json.dumps(str(path), ensure_ascii=False)


def _small_stem(config: ConfigDict) -> list[str]:
    """Returns the lines that replace a torch network's stem by the one for small images."""
    if config.model.stem == "imagenet":
        return []
    return [
        "  model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
        "  model.maxpool = torch.nn.Identity()",
    ]
