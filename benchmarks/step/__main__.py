"""Compares the speed of the pretraining step with the same step in PyTorch, on one machine.

Command: python -m benchmarks.step --size=small
  --size=small      the CIFAR recipe: ResNet-18, 32x32 (batch 128 on a CPU, 512 and 4096 on a GPU)
  --size=imagenet   MoCo v2: ResNet-50, 224x224 (batch 16 on a CPU, 256 and 1024 on a GPU)
  --size=vit        MoCo v3: ViT-S/16, 224x224 (the same batches)
  --size=cifar_vit  MoCo v3: the small ViT of configs/cifar10.py:v3_vit (the batches of small)

Three sides take turns, each in its own process: this project, torch with its defaults, and torch
at its best (channels_last, torch.compile and huge pages). On a GPU all use bfloat16, torch by
autocast. All train on random views that are already on the device, so augmentation is not measured.

Prints for each side the median, lowest and highest images/s, the fraction of the chip's peak FLOP/s
if it is known, peak memory and compile time. Then it prints the ratio to each torch. It needs jax,
flax, optax, ml_collections and torch. Torch may be in another environment (--torch_python).
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.step.worker import SIZES

_SIDES = ("moco_jax", "torch", "torch at its best")
_BATCHES = {
    ("small", False): [128],
    ("small", True): [512, 4096],
    ("imagenet", False): [16],
    ("imagenet", True): [256, 1024],
    ("vit", False): [16],
    ("vit", True): [256, 1024],
    ("cifar_vit", False): [128],
    ("cifar_vit", True): [512, 4096],
}
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__.split("\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, nargs="*", help="images a step")
    parser.add_argument("--bn_groups", type=int, help="default 8 for small, 1 for imagenet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps a turn")
    parser.add_argument("--sides", nargs="*", choices=_SIDES, default=_SIDES)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--json", help="file to which one JSON line per batch size is appended")
    options = parser.parse_args()

    gpu = shutil.which("nvidia-smi") is not None
    for batch in options.batch or _BATCHES[options.size, gpu]:
        flags = [
            f"--size={options.size}", f"--batch={batch}",
            f"--bn_groups={options.bn_groups or (8 if options.size == 'small' else 1)}",
            f"--dtype={options.dtype or ('bfloat16' if gpu else 'float32')}",
        ]  # fmt: skip
        steps = options.steps or (20 if gpu else 2)
        record = compare(flags, batch, options.turns, steps, options.sides, options.torch_python)
        print(table(record), flush=True)
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps(record) + "\n")


def compare(flags, batch, turns, steps, sides, torch_python) -> dict:
    """Returns the measurements of all sides at one batch size, with alternating turns."""
    with contextlib.ExitStack() as stack:
        processes = {
            side: stack.enter_context(_started(side, flags, torch_python)) for side in sides
        }
        return {"flags": flags, "batch": batch, "sides": _race(processes, batch, turns, steps)}


def _race(processes: dict[str, subprocess.Popen], batch: int, turns: int, steps: int) -> dict:
    results = {side: _answer(process) for side, process in processes.items()}
    speeds = {side: [] for side in processes}
    for turn in range(turns + 1):
        for side, process in processes.items():
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            answer = _answer(process)
            results[side]["loss"] = answer["loss"]
            if turn:  # the first turn is a warm-up
                speeds[side].append(steps * batch / answer["seconds"])
    for side, process in processes.items():
        process.stdin.close()
        results[side] |= _answer(process)
        process.wait()
        results[side]["images_per_second"] = statistics.median(speeds[side])
        results[side]["turns"] = speeds[side]
    return results


@contextlib.contextmanager
def _started(side: str, flags: list[str], torch_python: str) -> Iterator[subprocess.Popen]:
    """Starts the process of a side and ends it at the end of the context, also after an error."""
    if side == "moco_jax":
        command = [sys.executable, "-m", "benchmarks.step.this_side", *flags]
        # Huge pages, as in launch/local.sh.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | _HUGE_PAGES
    else:
        best = side != "torch"
        command = [torch_python, "-m", "benchmarks.step.torch_side", *flags, *["--best"] * best]
        environment = _HUGE_PAGES if best else {}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answer(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"error: {' '.join(process.args)} exited with {process.wait()}")
    return json.loads(line)


def table(record: dict) -> str:
    """Returns the measurements of `compare` as text, a line for each side and each ratio."""
    sides = record["sides"]
    lines = [
        f"{' '.join(record['flags'])}  {next(iter(sides.values()))['device']}",
        f"{'':20} {'images/s':>9} {'spread':>15} {'MFU':>6} {'peak MB':>8} {'compile s':>9}",
    ]
    ours = sides.get("moco_jax", {})
    for side, r in sides.items():
        mfu = "-"
        if ours.get("peak_flops"):
            mfu = ours["flops"] / record["batch"] * r["images_per_second"] / ours["peak_flops"]
            mfu = f"{mfu:.1%}"
        spread = f"{min(r['turns']):.1f} to {max(r['turns']):.1f}"
        lines.append(
            f"{side:20} {r['images_per_second']:9.1f} {spread:>15} {mfu:>6} "
            f"{r['peak_megabytes']:8.0f} {r['compile_seconds']:9.1f}  {r['library']}"
        )
    for side in sides:
        if side != "moco_jax" and ours:
            ratio = ours["images_per_second"] / sides[side]["images_per_second"]
            lines.append(f"ratio {ratio:.2f} to {side}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
