"""What moves between chips in a step: the collectives of a compiled program, read off its HLO."""

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

_LONGEST = 120  # letters of a source; merged collectives name all that they come from


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: one of `KINDS`.
      arrays: on one chip, what it gives, or for an all-gather what it gets: the larger side.
      times: how often a step runs it; None in a loop of unknown length.
      source: the operation of the Python program that it comes from, as far as XLA tells.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int | None
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of one chip, each time; what crosses a link depends on the algorithm."""
        return sum(array.bytes for array in self.arrays)

    def __str__(self) -> str:
        largest = max(self.arrays, key=lambda array: array.bytes, default=None)
        more = f" and {len(self.arrays) - 1} more" if len(self.arrays) > 1 else ""
        times = {1: "", None: " in a loop of unknown length"}.get(
            self.times, f" {self.times} times"
        )
        return f"{self.kind} of {largest}{more}{times} ({self.source or 'unknown source'})"


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, those of called computations included.

    An asynchronous one, a start and a done, is one. One in a loop runs as often as the loop does.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: if the text has no entry computation.
    """
    found = []
    for instruction in hlo.instructions(text, enter=lambda i: _kind(i) not in KINDS):
        if _kind(instruction) in KINDS:
            source = instruction.source[:_LONGEST]
            side = _larger_side(instruction)
            found.append(Collective(_kind(instruction), side, instruction.times, source))
    return found


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Returns the bytes of one chip in a step, by kind; a loop of unknown length counts once."""
    total: dict[str, int] = {}
    for collective in found:
        times = 1 if collective.times is None else collective.times
        total[collective.kind] = total.get(collective.kind, 0) + times * collective.bytes
    return total


def image_movers(
    found: list[Collective], *, images: float, view: int, canvas: int
) -> list[Collective]:
    """Returns the collectives that move images beyond what shuffling batch norm needs.

    It moves the views of a device's own images. None should move images as they come from the
    host, nor more of the views: those would grow with the number of devices.

    Args:
      found: of the step.
      images: of a device.
      view: side of a view, pixels.
      canvas: side of an image from the host, pixels.
    """

    whole, one_view = canvas**2 * 3, view**2 * 3

    def beyond(array: Array) -> bool:
        if array.dtype == "u8":
            return array.size >= whole
        return array.size > images * one_view and _holds(array.shape, one_view)

    return [c for c in found if any(beyond(array) for array in c.arrays)]


def _holds(shape: tuple[int, ...], size: int) -> bool:
    """Returns whether neighbouring dimensions multiply to the size: a view, flat or not."""
    return any(
        math.prod(shape[start:end]) == size
        for start in range(len(shape))
        for end in range(start + 1, len(shape) + 1)
    )


def _kind(instruction: hlo.Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def _larger_side(instruction: hlo.Instruction) -> tuple[Array, ...]:
    """Returns the arrays that one chip gives, or for an all-gather those that it gets."""
    if _kind(instruction) != "all-gather":
        return instruction.operands
    if instruction.opcode.endswith("-start"):  # ((operands), (results))
        return hlo.arrays(hlo.elements(instruction.shape)[1])
    return instruction.results
