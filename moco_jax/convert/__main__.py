"""Weights of other projects, in and out.

    python -m moco_jax.convert --source=moco_v2_800ep.pth.tar --to=moco_jax --out=v2.safetensors
    python -m moco_jax.convert --source=runs/imagenet_v2 --to=huggingface --out=v2_huggingface

What the source is, is told by the names in it. Weights can't tell what has none: a stem of 3x3 is
taken for the CIFAR-10 demo's, without pooling, and a stride of bottlenecks for torchvision's.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict

from moco_jax import command_line
from moco_jax.convert import network, sources, targets

_SOURCE = flags.DEFINE_string("source", None, "A file, a workdir, or a folder of Hugging Face's.")
_TO = flags.DEFINE_string("to", None, f"What to make of it: {', '.join(targets.TARGETS)}.")
_OUT = flags.DEFINE_string("out", None, "File or folder to write, which must not exist yet.")
_IMAGES = flags.DEFINE_integer(
    "training_images",
    None,
    "In the training set, for --to=workdir with another batch size than the checkpoint's.",
    lower_bound=1,
)


def convert(path: pathlib.Path, to: str, out: pathlib.Path, config: ConfigDict | None) -> None:
    """Converts as the flags say, telling what is recognised and what is written."""
    targets.check(to, out)
    if to == "workdir" and config is None:
        raise ValueError("--to=workdir needs the experiment: --config=configs/imagenet.py")
    if to != "workdir" and _IMAGES.value is not None:
        raise ValueError(f"--training_images is for --to=workdir, got --to={to}")
    source = sources.read(path, config)
    found = source.pretrained
    print(f"{path}: {source.title}\n  {network.describe(found.config, found.variables)}")
    told = targets.write(source, to, out, _IMAGES.value)
    left_out = targets.left_out(source, to)
    if left_out:
        print(f"  left out: {', '.join(left_out)}")
    print(f"{out}: written ({to})")
    print("\n".join(told), end="\n" * bool(told))


def main(_) -> None:
    config = command_line.config() if command_line.has_config() else None
    command_line.quieten()
    if not (_SOURCE.value and _TO.value and _OUT.value):
        command_line.fail(
            "give --source, --to and --out, such as "
            "--source=moco_v2_800ep.pth.tar --to=moco_jax --out=v2.safetensors"
        )
    path, out = pathlib.Path(_SOURCE.value), pathlib.Path(_OUT.value)
    try:
        convert(path.expanduser(), _TO.value, out.expanduser().absolute(), config)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if logging.level_debug():
            raise
        command_line.fail(f"{error}\n(--verbosity=1 shows where)")
    except KeyboardInterrupt:
        print("\nstopped; nothing is written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_without_config)
