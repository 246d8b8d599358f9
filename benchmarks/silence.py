"""Measures for how long commands print nothing, and how wide their lines are.

Command: python -m benchmarks.silence                       # the common commands, in small form
  --columns=160                                             # of the terminal; 80 by default
  --columns=0                                               # a pipe
  --only=knn,embed                                          # some of these commands
  -- python -m moco_jax.main --config=configs/digits.py     # another command

Each command runs under a pseudo-terminal of its own, and the time of all output is recorded. The
commands train a small network on 60 images that are made here. Printed for each: seconds until the
first output, which has the import of JAX in it; the longest silence after that, in seconds, and
what was printed before and after; the widest live line and the widest printed line that is not a
command to copy; whether there are escape codes; the exit code. NO_COLOR=1 before the command is
passed on. Nothing is asserted: the numbers belong to the machine.
"""

import argparse
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

_REPOSITORY = pathlib.Path(__file__).parents[1]
_IMAGES, _CLASSES = 60, 3
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SHOWN = 70  # characters of a line before or after a silence
_CONFIG = "--config=configs/folder.py:{images},small"
_COMMANDS = {
    "help": "moco_jax.main --help",
    "preview": f"moco_jax.data.preview {_CONFIG} --out={{work}}/views.png",
    "folder": f"moco_jax.main {_CONFIG} --config.steps=60 --workdir={{work}}/run",
    "resume": f"moco_jax.main {_CONFIG} --config.steps=80 --workdir={{work}}/run",
    "digits": "moco_jax.main --config=configs/digits.py --config.steps=60 --workdir={work}/digits",
    "linear": (
        "moco_jax.main --config=configs/digits_linear.py --config.pretrained={work}/digits "
        "--config.epochs=2 --workdir={work}/linear"
    ),
    "cached": (
        "moco_jax.main --config=configs/digits_linear.py --config.pretrained={work}/digits "
        "--config.cached=True --config.l2=1e-2,1e-4 --workdir={work}/cached"
    ),
    "finetune": (
        "moco_jax.main --config=configs/digits_finetune.py:1percent "
        "--config.pretrained={work}/digits --config.epochs=2 --workdir={work}/finetune"
    ),
    "knn": "moco_jax.knn --encoder={work}/run --k=1,5",
    "embed": "moco_jax.embed --encoder={work}/run --images={images} --out={work}/features.npz",
    "query": (
        "moco_jax.embed --encoder={work}/run --features={work}/features.npz "
        "--query={images}/class_0/0.jpg"
    ),
    "duplicates": "moco_jax.embed --features={work}/features.npz --duplicates=0.99",
    "convert": "moco_jax.convert --source={work}/run --to=moco_jax --out={work}/out.safetensors",
    "plan": f"moco_jax.plan {_CONFIG} --topology=h100:1",
    "ablate": (
        f"moco_jax.ablate --study=temperature --values=0.1,0.2 {_CONFIG} --config.steps=20 "
        "--out={work}/study"
    ),
    "input": f"moco_jax.data.benchmark {_CONFIG} --seconds=0.5",
}


class Output(NamedTuple):
    """Bytes that a command printed at once, and when: seconds since its start."""

    seconds: float
    text: bytes


class Recording(NamedTuple):
    """All that a command printed."""

    outputs: list[Output]
    seconds: float  # of the whole command
    code: int


def record(command: list[str], columns: int) -> Recording:
    """Runs a command under a pseudo-terminal, or with 0 columns in a pipe."""
    inside = outside = None
    if columns:
        outside, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=_REPOSITORY,
        env=os.environ | ({"TERM": "xterm-256color"} if columns else {}),
        stdin=subprocess.DEVNULL,
        stdout=inside if columns else subprocess.PIPE,
        stderr=inside if columns else subprocess.STDOUT,
        start_new_session=True,
    )
    if inside is not None:
        os.close(inside)
    reader = outside if outside is not None else process.stdout.fileno()  # pyright: ignore
    outputs = []
    while text := _read(reader):
        outputs.append(Output(time.monotonic() - begun, text))
    code = process.wait()
    if outside is not None:
        os.close(outside)
    return Recording(outputs, time.monotonic() - begun, code)


def _read(descriptor: int) -> bytes:
    """Returns the next output; nothing at its end, which a terminal reports as an error."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


def silence(recording: Recording) -> tuple[float, str, str]:
    """Returns the longest silence after the first output, and the lines before and after it."""
    outputs = [*recording.outputs, Output(recording.seconds, b"(end)")]
    longest, before, after = 0.0, "", ""
    for (begun, text), (ended, following) in zip(outputs, outputs[1:], strict=False):
        if ended - begun > longest:
            longest, before, after = ended - begun, _last_line(text), _first_line(following)
    return longest, before, after


def _lines(text: bytes) -> list[str]:
    pieces = re.split("[\r\n]+", _ESCAPE.sub("", text.decode(errors="replace")))
    return [piece for piece in pieces if piece.strip()]


def _first_line(text: bytes) -> str:
    return (_lines(text) or ["(nothing visible)"])[0].strip()[:_SHOWN]


def _last_line(text: bytes) -> str:
    return (_lines(text) or ["(nothing visible)"])[-1].strip()[:_SHOWN]


def widths(recording: Recording) -> tuple[int, int]:
    """Returns the widths of the widest live line and of the widest line of prose."""
    text = b"".join(output.text for output in recording.outputs).decode(errors="replace")
    live = printed = 0
    for line in _ESCAPE.sub("", text).replace("\r\n", "\n").split("\n"):
        *drawn, last = line.split("\r")
        if drawn and drawn[-1].strip():  # the line stays; else it was removed before a message
            drawn.append(last)
            last = ""
        live = max([live, *map(len, drawn)])
        if not last.startswith(" "):
            printed = max(printed, len(last))
    return live, printed


def make_images(folder: pathlib.Path) -> None:
    """Writes 60 small JPEGs in 3 classes."""
    random = np.random.default_rng(0)
    for number in range(_IMAGES):
        label, name = number % _CLASSES, number // _CLASSES
        pixels = random.integers(0, 96, (40, 48, 3), np.uint8)
        pixels[10:30, 8 + 4 * label : 24 + 4 * label, label] += 128
        path = folder / f"class_{label}" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def report(name: str, recording: Recording) -> None:
    """Prints the numbers of a command."""
    longest, before, after = silence(recording)
    live, printed = widths(recording)
    first = recording.outputs[0].seconds if recording.outputs else recording.seconds
    codes = any(b"\x1b" in output.text for output in recording.outputs)
    print(
        f"{name:12} {first:8.1f} {longest:8.1f} {recording.seconds:8.1f} {live:6} {printed:6}  "
        f"{'yes' if codes else 'no':6} {recording.code:4}  {before!r} .. {after!r}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--columns", type=int, default=80, help="of the terminal; 0 for a pipe")
    parser.add_argument("--only", default="", help=f"some of {','.join(_COMMANDS)}")
    parser.add_argument("--keep", default="", help="folder for what the commands print")
    parser.add_argument("command", nargs="*", help="another command, after --")
    asked = parser.parse_args()
    print(
        "command         first  silence    total   live  lines  codes  exit  "
        "before .. after the longest silence"
    )
    with tempfile.TemporaryDirectory(prefix="moco_jax_silence_") as temporary:
        images, work = pathlib.Path(temporary, "images"), pathlib.Path(temporary, "work")
        make_images(images)
        work.mkdir()
        chosen = asked.only.split(",") if asked.only else list(_COMMANDS)
        commands = {
            name: [sys.executable, "-m", *_COMMANDS[name].format(images=images, work=work).split()]
            for name in chosen
        }
        for name, command in ({"given": asked.command} if asked.command else commands).items():
            recording = record(command, asked.columns)
            report(name, recording)
            if asked.keep:
                pathlib.Path(asked.keep).mkdir(parents=True, exist_ok=True)
                text = b"".join(output.text for output in recording.outputs)
                pathlib.Path(asked.keep, f"{name}_{asked.columns}.txt").write_bytes(text)


if __name__ == "__main__":
    main()
