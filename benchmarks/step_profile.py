"""Measures which operations of the pretraining step take the most time, with the profiler.

Command: python -m benchmarks.step_profile --size=small --batch=128 --bn_groups=8

The step is that of `benchmarks.step`. Prints the time of a step, the sum over its operations, and
the ten longest operations with their fraction of that sum, milliseconds and GB/s. Operations that
run at the same time are each counted in full, so the sum can exceed the time of the step. GB/s
count each operand and each result once.
"""

import collections
import math
import os
import pathlib
import re
import tempfile
import time

import jax

from benchmarks.step import this_side, worker

_STEPS = 3
_OPERATION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = "
    r"(?P<shape>\([^=]*?\)|\S+) (?P<kind>[\w\-]+)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")


def main() -> None:
    options = worker.problem_parser(__doc__).parse_args()
    # The profiler does not see the operations of a CUDA graph.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer="
    step = this_side.make_step(worker.problem_of(options))
    durations, seconds = trace(step)
    program = read_program(step.compiled.as_text())
    total = sum(durations.values())
    print(f"{seconds:.3f} s a step; sum over its operations {total:.3f} s, of which")
    print(f"{'fraction':>6} {'ms':>8} {'GB/s':>6}  operation")
    for name, duration in durations.most_common(10):
        size, source = program.get(name, (0, ""))
        rate = size / duration / 1e9
        print(f"{duration / total:6.1%} {duration * 1e3:8.1f} {rate:6.1f}  {name}  {source}")


def trace(step: this_side.Step) -> tuple[collections.Counter, float]:
    """Returns the seconds of each operation in a step, and the seconds of the step."""
    state, metrics = step.compiled(step.state, *step.inputs)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun = time.perf_counter()
            for _ in range(_STEPS):
                state, metrics = step.compiled(state, *step.inputs)
            jax.block_until_ready((state, metrics))
            seconds = (time.perf_counter() - begun) / _STEPS
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    durations = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name is not None:
                    durations[name] += event.duration_ns / 1e9 / _STEPS
    return durations, seconds


def read_program(text: str) -> dict[str, tuple[int, str]]:
    """Returns {operation: (bytes read and written, kind and source)} of a program's text."""
    shapes, found = {}, {}
    matches = [match for line in text.splitlines() if (match := _OPERATION.match(line))]
    for match in matches:
        shapes[match["name"]] = _bytes(match["shape"])
    for match in matches:
        operands = re.findall(r"%([\w.\-]+)", match["rest"].split("), ")[0])
        size = shapes[match["name"]] + sum(shapes.get(operand, 0) for operand in operands)
        source = re.search(r'op_name="[^"]*?(Encoder[^"]*)"', match["rest"])
        found[match["name"]] = size, f"{match['kind']} {source[1] if source else ''}"
    return found


def _bytes(shape: str) -> int:
    sizes = []
    for _, bits, dimensions in _ARRAY.findall(shape):
        lengths = [int(n) for n in dimensions.split(",") if n]
        sizes.append(math.prod(lengths) * int(bits or 8) // 8)
    return sum(sizes)


if __name__ == "__main__":
    main()
