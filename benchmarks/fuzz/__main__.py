"""Reads thousands of damaged files as the commands would, and finds what they do wrong.

Command: python -m benchmarks.fuzz --inputs=10000 --seed=0
  --kinds=tar,encoder   only these kinds
  --only=tar:1234       only this input, with its whole message

An input is a copy of a valid file (or workdir) with a mutation that follows from the seed, the kind
and the number. Half of the mutations damage bytes; the others edit the format with checksums that
fit. Two processes read the inputs; they have a limit of memory, and one that hangs is ended.

Prints a table of the kinds by their outcomes, and every failure with the call that repeats it. The
exit code is 1 if there is a failure.

  same       the contents are those of the original
  error      a message names the file and what is wrong
  told       the contents differ, and a message says what was left out, repaired or replaced
  legal      the contents differ as the mutation made them, which no reader can see
  POOR       the message does not name the file, is longer than a screen, or has control characters
  SILENT     the contents differ, and nothing says so
  TRACEBACK  another exception, or the end of the process
  EXECUTED   the input ran a program, imported a module or opened a connection
  HANG       no answer within 20 seconds, and again within 60
"""

import argparse
import collections
import importlib.util
import os
import pathlib
import shutil
import sys
import textwrap
import time

from benchmarks.fuzz.pool import Input, outcomes

OUTCOMES = ("same", "error", "told", "legal", "POOR", "SILENT", "TRACEBACK", "EXECUTED", "HANG")
KINDS = {  # with the library that a kind needs
    "tar": "", "compressed_tar": "", "zip": "", "shards": "", "images_npz": "", "image": "",
    "folder": "",
    "tfds": "tensorflow_datasets", "image_tables": "pyarrow", "image_lists": "",
    "features_npz": "", "features_parquet": "pyarrow", "encoder": "", "safetensors": "",
    "torch": "torch", "checkpoint": "", "resume": "", "about": "", "resume_about": "",
    "metrics": "", "overrides": "",
    "config_file": "",
}  # fmt: skip


def write_originals(folder: pathlib.Path, kinds: list[str]) -> None:
    """Writes the originals of the kinds that have none yet."""
    missing = [kind for kind in kinds if not (folder / kind).exists()]
    if not missing:
        return
    from benchmarks.fuzz.originals import WRITERS

    for kind in missing:
        unfinished = folder / f"{kind}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        WRITERS[kind](unfinished)
        unfinished.rename(folder / kind)


def table(counts: dict[str, collections.Counter]) -> str:
    """Returns the kinds by their outcomes."""
    lines = [f"{'kind':16}" + "".join(f"{name:>10}" for name in ("inputs", *OUTCOMES))]
    total = sum(counts.values(), collections.Counter())
    for kind, count in (*counts.items(), ("all", total)):
        numbers = (count.total(), *(count[name] for name in OUTCOMES))
        lines.append(f"{kind:16}" + "".join(f"{number:10}" for number in numbers))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, shared by the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--only", help="one input, such as tar:1234")
    parser.add_argument("--folder", type=pathlib.Path, default="runs/fuzz", help="is emptied")
    parser.add_argument("--shown", type=int, default=20, help="failures of a kind and outcome")
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    kinds = [options.only.partition(":")[0]] if options.only else options.kinds.split(",")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        parser.error(f"unknown kinds {', '.join(unknown)}; known: {', '.join(KINDS)}")
    for kind in list(kinds):
        if KINDS[kind] and importlib.util.find_spec(KINDS[kind]) is None:
            print(f"{kind} is left out: {KINDS[kind]} is not installed")
            kinds.remove(kind)
    folder = options.folder.absolute()
    if not options.only:  # a single input needs the originals of its call
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "originals").mkdir(parents=True, exist_ok=True)
    write_originals(folder / "originals", kinds)
    if options.only:
        inputs = [Input(kinds[0], int(options.only.partition(":")[2]))]
    else:
        inputs = [Input(kind, i) for i in range(-(-options.inputs // len(kinds))) for kind in kinds]
    return report(folder, options, kinds, inputs)


def _escaped(text: str) -> str:
    """Returns a text with the bytes that a terminal would obey or refuse escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def report(folder: pathlib.Path, options, kinds: list[str], inputs: list[Input]) -> int:
    """Runs the inputs and prints the failures and the table; returns the exit code."""
    counts = {kind: collections.Counter() for kind in kinds}
    begun = time.monotonic()
    for given, (outcome, label, detail) in outcomes(folder, options.seed, inputs):
        count = counts[given.kind]
        count[outcome] += 1
        done = sum(count.total() for count in counts.values())
        if done % 1000 == 0:
            print(f"{done} inputs in {time.monotonic() - begun:.0f} s", flush=True)
        if options.only or (outcome.isupper() and count[outcome] <= options.shown):
            print(f"{outcome} {given.kind}:{given.number} ({_escaped(label[:200])})")
            print(textwrap.indent(_escaped(detail), "  "))
            only = f"--seed={options.seed} --only={given.kind}:{given.number}"
            print(f"  repeat: python -m benchmarks.fuzz {only}", flush=True)
    print(table(counts))
    print(
        f"{len(inputs)} inputs in {time.monotonic() - begun:.0f} s; failures in {folder}/failures"
    )
    return int(any(count[name] for count in counts.values() for name in OUTCOMES if name.isupper()))


if __name__ == "__main__":
    sys.exit(main())
