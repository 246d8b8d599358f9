"""Counts the kernels, bytes and cycles of a compiled step for each part of the step."""

import collections

from moco_jax.plan import hlo
from moco_jax.plan.kernels import cycles, moved


def part(instruction: hlo.Instruction) -> str:
    """Returns the name of the step's part that contains an instruction."""
    source = instruction.source
    for name in ("views", "keys", "update"):
        if f"/{name}/" in source:
            return name
    if "/gradient/" in source:
        return "backward" if "transpose(" in source else "queries and loss"
    return "other"


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
