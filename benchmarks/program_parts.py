"""Counts the kernels, bytes and cycles of a compiled step for each part of the step."""

import collections
import re

from moco_jax.plan import hlo

_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
_NO_KERNELS |= {"conditional", "after-all"}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def part(instruction: hlo.Instruction) -> str:
    """Returns the name of the step's part that contains an instruction."""
    source = instruction.source
    for name in ("views", "keys", "update"):
        if f"/{name}/" in source:
            return name
    if "/gradient/" in source:
        return "backward" if "transpose(" in source else "queries and loss"
    return "other"


def kernels(text: str) -> list[hlo.Instruction]:
    """Returns the kernels of a compiled program in the order of its text."""
    loops = ("while", "call", "conditional", "async-start")
    found = hlo.instructions(text, enter=lambda i: i.opcode in loops)
    return [
        i
        for i in found
        if i.opcode not in _NO_KERNELS and not i.opcode.endswith(("-start", "-done"))
    ]


def moved(kernel: hlo.Instruction) -> int:
    """Returns the bytes that a kernel reads and writes in a step, as if there were no cache."""
    return sum(a.bytes for a in kernel.operands + kernel.results) * (kernel.times or 1)


def cycles(kernel: hlo.Instruction) -> int:
    """Returns the TPU compiler's estimate for a kernel in a step; 0 if there is none."""
    found = _CYCLES.search(kernel.rest)
    return int(found[1]) * (kernel.times or 1) if found else 0


def table(run: list[hlo.Instruction]) -> str:
    """Returns a table with a line for each part of the step and a line of sums."""
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])
    for kernel in run:
        times = kernel.times or 1
        fusion = times * (kernel.opcode == "fusion")
        for name in (part(kernel), "all"):
            for i, value in enumerate((times, fusion, moved(kernel), cycles(kernel))):
                sums[name][i] += value
    total = sums["all"]
    lines = [
        f"{'':18} {'kernels':>8} {'fusions':>8} {'GB':>8} {'part':>6} {'M cycles':>9} {'part':>6}"
    ]
    for name, (count, fusions, size, estimate) in sorted(
        sums.items(), key=lambda item: (item[0] == "all", -item[1][2])
    ):
        lines.append(
            f"{name:18} {count:8} {fusions:8} {size / 1e9:8.2f} {size / total[2]:6.1%} "
            f"{estimate / 1e6:9.2f} {estimate / max(total[3], 1):6.1%}"
        )
    return "\n".join(lines)


def largest(run: list[hlo.Instruction], count: int) -> list[str]:
    """Returns a line for each of the largest kernels, by estimated cycles or else by bytes."""
    ranked = sorted(run, key=lambda kernel: cycles(kernel) or moved(kernel), reverse=True)
    return [
        f"{moved(kernel) / 1e6:9.1f} MB {cycles(kernel) / 1e6:7.3f} M  {kernel.name}  "
        f"{kernel.source[-100:]}"
        for kernel in ranked[:count]
    ]
