"""Converts weights from and to other projects.

    python -m moco_jax.convert --source=moco_v2_800ep.pth.tar --to=moco_jax --out=v2.safetensors
    python -m moco_jax.convert --source=runs/imagenet_v2 --to=huggingface --out=v2_huggingface

The command reads MoCo v1/v2/v3, MAE, torchvision, timm and Hugging Face weights and detects the
format from the parameter names. Weights do not contain everything: a 3x3 stem is read as the
CIFAR-10 demo's, without pooling, the stride of a bottleneck as torchvision's, in the 3x3
convolution, and a ViT has the usual number of attention heads.
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import ConfigDict

from moco_jax.convert import targets
from moco_jax.models.vit import NETWORKS
from moco_jax.terminal import arguments, command_line, style
from moco_jax.training.remote import copies
from moco_jax.training.remote.reading import fetched
from moco_jax.weights import network, sources

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Weights to read: a file, a workdir or a Hugging Face folder, or the URL of one.",
)
_TO = flags.DEFINE_string("to", None, f"Format to write: {', '.join(targets.TARGETS)}.")
_OUT = flags.DEFINE_string("out", None, "File or folder to write; must not exist.")
_PREFIX = flags.DEFINE_string(
    "prefix", None, "Encoder to read, if a file has several: the prefix of its arrays' names."
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "Attention heads of the ViT to read, if its file does not contain the number.", 1
)
_IMAGES = flags.DEFINE_integer(
    "training_images",
    None,
    "Number of training images. --to=workdir needs it if the config's batch size differs from the "
    "checkpoint's, --to=moco and --to=mae if the workdir does not contain it.",
    lower_bound=1,
)
_WITH_IMAGES = ("workdir", "moco", "mae")


def convert(path: pathlib.Path, to: str, out: pathlib.Path, config: ConfigDict | None) -> None:
    """Reads, writes and prints what it recognised, left out and wrote."""
    targets.check(to, out)
    if to == "workdir" and config is None:
        raise ValueError("--to=workdir needs the experiment, such as --config=configs/imagenet.py")
    if to not in _WITH_IMAGES and _IMAGES.value is not None:
        allowed = ", ".join(f"--to={name}" for name in _WITH_IMAGES)
        raise ValueError(f"--training_images is for {allowed} only, got --to={to}")
    source = sources.read(path, config, _PREFIX.value, _HEADS.value)
    found = source.pretrained
    if _HEADS.value and (source.path is not None or found.config.model.name not in NETWORKS):
        raise ValueError(f"--heads is for ViTs of other projects; {path} is {source.title}")
    about = network.describe(found.config, found.variables), *source.notes
    _print(f"{copies.named(path)}: {source.title}", *(f"  {line}" for line in about))
    lines = targets.write(source, to, out, _IMAGES.value)
    left_out = targets.left_out(source, to)
    if left_out:
        _print(f"  left out: {', '.join(left_out)}")
    if config is not None:
        given = shlex.join(arguments.of_config(sys.argv))
        lines = [line.replace("--config=...", given) for line in lines]
    _print(f"wrote {out} ({to})", *lines)


def _print(*lines: str) -> None:
    print(style.shown("\n".join(lines), sys.stdout))


def main() -> None:
    config = command_line.config() if command_line.has_config() else None
    if not (_SOURCE.value and _TO.value and _OUT.value):
        command_line.fail(
            "--source, --to and --out must be given, such as "
            "--source=moco_v2_800ep.pth.tar --to=moco_jax --out=v2.safetensors"
        )
    out = command_line.on_disk(_OUT.value).absolute()
    with command_line.naming(f"--source={_SOURCE.value}"):
        path = fetched(_SOURCE.value)
    convert(path, _TO.value, out, config)


if __name__ == "__main__":
    command_line.run_main(main, config="optional", interrupted="interrupted; nothing is written")
