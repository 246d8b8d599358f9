"""The kernels of a compiled program: what each reads and writes, and the cycles it takes."""

import re

from moco_jax.plan import hlo

_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
_NO_KERNELS |= {"conditional", "after-all"}
_LOOPS = ("while", "call", "conditional", "async-start")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def kernels(text: str) -> list[hlo.Instruction]:
    """Returns the kernels of a compiled program in the order of its text."""
    return [
        i
        for i in hlo.instructions(text, enter=lambda i: i.opcode in _LOOPS)
        if i.opcode not in _NO_KERNELS and not i.opcode.endswith(("-start", "-done"))
    ]


def moved(kernel: hlo.Instruction) -> int:
    """Returns the bytes that a kernel reads and writes in a step, as if there were no cache."""
    return sum(a.bytes for a in kernel.operands + kernel.results) * (kernel.times or 1)


def cycles(kernel: hlo.Instruction) -> int:
    """Returns the TPU compiler's estimate for a kernel in a step; 0 if there is none."""
    found = _CYCLES.search(kernel.rest)
    return int(found[1]) * (kernel.times or 1) if found else 0
