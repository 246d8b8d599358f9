"""The collectives of a compiled program: what a step moves between devices, read from its HLO."""

import dataclasses
import math

from moco_jax.plan import hlo
from moco_jax.plan.hlo import Array

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_MAX_SOURCE = 120  # characters; a merged collective names every operation it was made from


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of the program."""

    kind: str  # one of `KINDS`
    arrays: tuple[Array, ...]  # that one device sends; for an all-gather the larger, received ones
    times: int | None  # that a step runs it; None in a loop of unknown length
    source: str  # the operation of the Python program that it was compiled from; "" if unknown

    @property
    def bytes(self) -> int:
        """Bytes of `arrays`, each time it runs; the bytes on a link depend on the algorithm."""
        return sum(array.bytes for array in self.arrays)

    @property
    def bytes_per_step(self) -> int:
        """Bytes of all times that it runs; a loop of unknown length counts once."""
        return self.bytes * (1 if self.times is None else self.times)

    def __str__(self) -> str:
        largest = max(self.arrays, key=lambda array: array.bytes, default=None)
        more = f" and {len(self.arrays) - 1} more" if len(self.arrays) > 1 else ""
        times = {1: "", None: " in a loop of unknown length"}.get(
            self.times, f" {self.times} times"
        )
        return f"{self.kind} of {largest}{more}{times} ({self.source or 'unknown source'})"


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program and of the computations that it calls.

    `text` is `compiled.as_text()`. An asynchronous collective, a start and a done instruction,
    counts once.

    Raises:
      ValueError: if the text has no entry computation.
    """
    found = []
    for instruction in hlo.instructions(text, enter=lambda i: _kind(i) not in KINDS):
        kind, arrays = _kind(instruction), instruction.operands
        if kind not in KINDS:
            continue
        if kind == "all-gather":
            arrays = instruction.results
            if instruction.opcode.endswith("-start"):  # its shape is ((operands), (results))
                number = len(instruction.operands)
                arrays = arrays[number : 2 * number]
        found.append(Collective(kind, arrays, instruction.times, instruction.source[:_MAX_SOURCE]))
    return found


def _kind(instruction: hlo.Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def excess_image_moves(
    found: list[Collective], *, images: float, view: int, canvas: int
) -> list[Collective]:
    """Returns the collectives that move more images than shuffling batch norm needs.

    The shuffle moves as many views as a device has images. No collective should move more views,
    or images as they come from the host: these bytes would grow with the number of devices.

    Args:
      images: images per device.
      view: side of a view, pixels.
      canvas: side of an image from the host, pixels.
    """
    canvas_size, view_size = canvas**2 * 3, view**2 * 3

    def contains_view(shape: tuple[int, ...]) -> bool:
        """Returns whether neighbouring dimensions are those of a view, in any shape."""
        ends = range(1, len(shape) + 1)
        return any(math.prod(shape[i:j]) == view_size for j in ends for i in range(j))

    def is_excess(array: Array) -> bool:
        if array.dtype == "u8":
            return array.size >= canvas_size
        return array.size > images * view_size and contains_view(array.shape)

    # An all-reduce is of gradients; a kernel may have as many numbers as views.
    moves = [c for c in found if c.kind != "all-reduce"]
    return [c for c in moves if any(is_excess(array) for array in c.arrays)]
