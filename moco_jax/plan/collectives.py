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
    """A collective operation of the program.

    Attributes:
      kind: one of `KINDS`.
      arrays: the arrays that one device sends; for an all-gather, those that it receives, which are
        larger.
      times: number of times that a step runs it; None in a loop of unknown length.
      source: the operation of the Python program that it was compiled from; "" if unknown.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int | None
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of `arrays`, each time it runs; the bytes on a link depend on the algorithm."""
        return sum(array.bytes for array in self.arrays)

    def __str__(self) -> str:
        largest = max(self.arrays, key=lambda array: array.bytes, default=None)
        more = f" and {len(self.arrays) - 1} more" if len(self.arrays) > 1 else ""
        times = {1: "", None: " in a loop of unknown length"}.get(
            self.times, f" {self.times} times"
        )
        return f"{self.kind} of {largest}{more}{times} ({self.source or 'unknown source'})"


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program and of the computations that it calls.

    An asynchronous collective, a start and a done instruction, counts once.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: if the text has no entry computation.
    """
    found = []
    for instruction in hlo.instructions(text, enter=lambda i: _kind(i) not in KINDS):
        if _kind(instruction) in KINDS:
            source = instruction.source[:_MAX_SOURCE]
            moved = _moved_arrays(instruction)
            found.append(Collective(_kind(instruction), moved, instruction.times, source))
    return found


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Returns the bytes of one device in a step, by kind; a loop of unknown length counts once."""
    total: dict[str, int] = {}
    for collective in found:
        times = 1 if collective.times is None else collective.times
        total[collective.kind] = total.get(collective.kind, 0) + times * collective.bytes
    return total


def excess_image_moves(
    found: list[Collective], *, images: float, view: int, canvas: int
) -> list[Collective]:
    """Returns the collectives that move more images than shuffling batch norm needs.

    The shuffle moves as many views as a device has images. No collective should move more views,
    or images as they come from the host: these bytes would grow with the number of devices.

    Args:
      found: collectives of the step.
      images: images per device.
      view: side of a view, pixels.
      canvas: side of an image from the host, pixels.
    """

    canvas_size, view_size = canvas**2 * 3, view**2 * 3

    def is_excess(array: Array) -> bool:
        if array.dtype == "u8":
            return array.size >= canvas_size
        return array.size > images * view_size and _contains_view(array.shape, view_size)

    return [c for c in found if any(is_excess(array) for array in c.arrays)]


def _contains_view(shape: tuple[int, ...], size: int) -> bool:
    """Returns whether neighbouring dimensions multiply to `size`, of a view in any shape."""
    return any(
        math.prod(shape[start:end]) == size
        for start in range(len(shape))
        for end in range(start + 1, len(shape) + 1)
    )


def _kind(instruction: hlo.Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def _moved_arrays(instruction: hlo.Instruction) -> tuple[Array, ...]:
    """Returns the arrays that one device sends, or for an all-gather those that it receives."""
    if _kind(instruction) != "all-gather":
        return instruction.operands
    if instruction.opcode.endswith("-start"):  # its shape is ((operands), (results))
        return hlo.arrays(hlo.elements(instruction.shape)[1])
    return instruction.results
