"""Commands of moco_jax, each with an example; --help lists the flags of a command.

main: pretrains; runs the linear protocol, fine-tuning and segmentation
    python -m moco_jax.main --config=configs/folder.py:/path/to/images
check: checks this machine     python -m moco_jax.check
keys: lists keys of configs    python -m moco_jax.keys --match=knn
knn: measures the kNN accuracy of an encoder
    python -m moco_jax.knn --encoder=runs/digits
report: writes the report of a run as a page: verdict, curves, configuration
    python -m moco_jax.report --workdir=runs/digits
embed: writes features of images; finds neighbours and near-duplicates
    python -m moco_jax.embed --encoder=runs/digits --out=features.npz
convert: exchanges weights with torchvision, timm, Hugging Face, Detectron2
    python -m moco_jax.convert --source=runs/a --to=moco_jax --out=a.safetensors
ablate: repeats an ablation of the papers, compares pretexts
    python -m moco_jax.ablate --study=momentum --config=configs/digits.py
plan: forecasts memory and speed on GPUs and TPUs, without them
    python -m moco_jax.plan --config=configs/imagenet.py --topology=h100:8
data.preview: draws images beside their augmented views
    python -m moco_jax.data.preview --config=configs/digits.py --out=views.png
data.prepare: prepares a TFDS data set; converts any images to shards
    python -m moco_jax.data.prepare --name=cifar10
data.benchmark: measures how fast images are read
    python -m moco_jax.data.benchmark --config=configs/digits.py
"""

import os
import re
import sys

from moco_jax.terminal import style

_LISTED = ((), ("help",), ("--help",), ("-h",))


def main(arguments: list[str]) -> int:
    """Lists the commands; returns the exit code: 2 for arguments, which no list takes."""
    if tuple(arguments) not in _LISTED:
        known = re.findall(r"^([\w.]+):", __doc__ or "", re.MULTILINE)
        command = arguments[0] if arguments[0] in known else "main"
        hint = "did you mean" if arguments[0] in known else "it lists the commands, such as"
        style.print_line(
            f"error: python -m moco_jax takes no arguments, got {' '.join(arguments)!r:.100}; "
            f"{hint} python -m moco_jax.{command}" + "?" * (arguments[0] in known),
            sys.stderr,
        )
        return 2
    try:
        print((__doc__ or "").strip().replace("\n\n", "\n"), flush=True)  # on one screen
    except BrokenPipeError:  # `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run() -> None:
    """The entry point of the `moco-jax` command: without arguments it lists the commands."""
    if tuple(sys.argv[1:]) in _LISTED[:2]:
        sys.exit(main(sys.argv[1:]))
    from moco_jax.main import run as run_task  # imports JAX

    run_task()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
