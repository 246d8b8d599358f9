"""The pretraining step judged by the program that XLA compiles for a chip that isn't here.

Command: python -m benchmarks.step_program --config=configs/imagenet.py --chip=h200 \\
  --config.dtype=bfloat16 [--config.batch_size=256] [--largest=20]

For `--chip=v5e` (or another TPU) it needs libtpu, for `h100` and `h200` JAX for CUDA; neither needs
the chip. It tells, by parts of the step, how many kernels run and what they read and write (each
operand and each result once, as if no cache held any), and for TPUs the compiler's own estimate of
cycles. None of it is a time: an H200 reads 4.8 TB/s at its best, and how a product is computed is
found by trying, which needs the chip.
"""

import collections
import os
import re
import time

import jax
from absl import app, flags

from moco_jax import command_line, hlo, nvidia, program, topology, validation
from moco_jax.mesh import make_layout

_CHIP = flags.DEFINE_string("chip", "h200", "Such as v5e, v6e, h100, h200.")
_LARGEST = flags.DEFINE_integer("largest", 0, "Tells so many largest kernels.", lower_bound=0)
_PICTURES = flags.DEFINE_integer("training_pictures", 1281167, "In the training set.")
_TEXT = flags.DEFINE_string("text", None, "File that the program's text is written to.")

_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
_NO_KERNELS |= {"conditional", "after-all"}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def part(instruction: hlo.Instruction) -> str:
    """Returns the part of the step that an instruction belongs to."""
    source = instruction.source
    for name in ("views", "keys", "update"):
        if f"/{name}/" in source:
            return name
    if "/gradient/" in source:
        return "backward" if "transpose(" in source else "queries and loss"
    return "other"


def kernels(text: str) -> list[hlo.Instruction]:
    """Returns what the program runs, one after the other."""
    loops = ("while", "call", "conditional", "async-start")
    found = hlo.instructions(text, enter=lambda i: i.opcode in loops)
    return [
        i
        for i in found
        if i.opcode not in _NO_KERNELS and not i.opcode.endswith(("-start", "-done"))
    ]


def moved(kernel: hlo.Instruction) -> int:
    """Returns the bytes that a kernel reads and writes in a step."""
    return sum(a.bytes for a in kernel.operands + kernel.results) * (kernel.times or 1)


def cycles(kernel: hlo.Instruction) -> int:
    """Returns the TPU compiler's estimate for a kernel in a step; 0 where it makes none."""
    found = _CYCLES.search(kernel.rest)
    return int(found[1]) * (kernel.times or 1) if found else 0


def device():
    """Returns the device to compile for."""
    if _CHIP.value in nvidia.TARGETS:
        return nvidia.devices(topology.Topology(_CHIP.value, (1,)))[0]
    place = topology.parse(f"{_CHIP.value}:{'2x2x1' if _CHIP.value in ('v4', 'v5p') else '2x2'}")
    topology.check_compiler()
    return topology.tpu_devices(place)[0]


def main(_) -> None:
    config = command_line.config()
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        layout = make_layout([device()])
        validation.check(config, 1)
    except (ValueError, ModuleNotFoundError) as error:
        command_line.fail(str(error))
    step, *arguments = program.abstract_step(config, layout, _PICTURES.value)
    lowered = step.lower(*arguments)
    begun = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    if _TEXT.value:
        with open(_TEXT.value, "w") as file:
            file.write(text)
    run = kernels(text)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    print(
        f"{config.name}: {config.model.name}, batch {config.batch_size}, {config.dtype}, for one "
        f"{_CHIP.value}, jax {jax.__version__}, compiled in {seconds:.0f} s"
    )
    print(f"temporaries {memory.temp_size_in_bytes / 1e6:.0f} MB")
    for name in ("flops", "bytes accessed"):
        if name in cost:
            print(f"{name}, the compiler's count: {cost[name] / 1e9:.1f} G")
    print(table(run))
    for kernel in sorted(run, key=lambda k: cycles(k) or moved(k), reverse=True)[: _LARGEST.value]:
        print(
            f"{moved(kernel) / 1e6:9.1f} MB {cycles(kernel) / 1e6:7.3f} M  {kernel.name}  "
            f"{kernel.source[-100:]}"
        )


def table(run: list[hlo.Instruction]) -> str:
    """Returns the parts of the step, a line each, and their sums."""
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])
    for kernel in run:
        times = kernel.times or 1
        fusion = times * (kernel.opcode == "fusion")
        for name in (part(kernel), "all"):
            for i, value in enumerate((times, fusion, moved(kernel), cycles(kernel))):
                sums[name][i] += value
    total = sums["all"]
    lines = [
        f"{'':18} {'kernels':>8} {'fusions':>8} {'GB':>8} {'share':>6} {'M cycles':>9} {'share':>6}"
    ]
    for name, (count, fusions, size, estimate) in sorted(
        sums.items(), key=lambda item: (item[0] == "all", -item[1][2])
    ):
        lines.append(
            f"{name:18} {count:8} {fusions:8} {size / 1e9:8.2f} {size / total[2]:6.1%} "
            f"{estimate / 1e6:9.2f} {estimate / max(total[3], 1):6.1%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
