"""What moves between chips in a step: the collectives of a compiled program, read off its HLO."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_LONGEST = 120  # letters of a source; merged collectives name all that they come from
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as HLO writes it, the part that one chip holds.

    Attributes:
      dtype: such as bf16.
      shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits.group()) if digits else 0)
        return -(-self.size * bits // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # the operands and attributes


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, those of called computations included.

    An asynchronous one, a start and a done, is one. One in a loop runs as often as the loop does.

    Args:
      hlo: `compiled.as_text()`.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations, entry = _computations(hlo)
    if not entry:
        raise ValueError("no entry computation: this is no HLO module's text")
    return list(_walk(computations, entry, 1))


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Returns the bytes of one chip in a step, by kind; a loop of unknown length counts once."""
    total: dict[str, int] = {}
    for collective in found:
        times = 1 if collective.times is None else collective.times
        total[collective.kind] = total.get(collective.kind, 0) + times * collective.bytes
    return total


def picture_movers(
    found: list[Collective], *, images: float, view: int, canvas: int
) -> list[Collective]:
    """Returns the collectives that move pictures beyond what shuffling batch norm needs.

    It moves the views of a device's own images. None should move pictures as they come from the
    host, nor more of the views: those would grow with the number of devices.

    Args:
      found: of the step.
      images: of a device.
      view: side of a view, pixels.
      canvas: side of a picture from the host, pixels.
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


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the entry's name."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif current is not None and (name := _INSTRUCTION.match(line)):
            shape, rest = _split_shape(line[name.end() :])
            opcode, _, rest = rest.partition("(")
            current.append(_Instruction(name[1], shape, opcode.strip(), "(" + rest))
    return computations, entry


def _walk(
    computations: dict[str, list[_Instruction]], name: str, times: int | None
) -> Iterator[Collective]:
    """Yields the collectives of a computation that runs so many times."""
    instructions = computations.get(name, [])
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    for instruction in instructions:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            source = _SOURCE.search(instruction.rest)
            arrays = _larger_side(kind, instruction, shapes)
            yield Collective(kind, arrays, times, source[1][:_LONGEST] if source else "")
        elif not instruction.opcode.endswith(("-update", "-done")):
            for called, inner in _calls(instruction):
                product = None if times is None or inner is None else times * inner
                yield from _walk(computations, called, product)


def _calls(instruction: _Instruction) -> Iterator[tuple[str, int | None]]:
    """Yields the computations that an instruction calls, and how often (None: unknown)."""
    times: int | None = 1
    if instruction.opcode == "while":
        trips = _TRIPS.search(instruction.rest)
        times = int(trips[1]) if trips else None
    for _, names in _CALLED.findall(instruction.rest):
        for name in re.findall(r"[\w.\-]+", names):
            yield name, times


def _larger_side(kind: str, instruction: _Instruction, shapes: dict[str, str]) -> tuple[Array, ...]:
    """Returns the arrays that one chip gives, or for an all-gather those that it gets."""
    if kind == "all-gather":
        results = instruction.shape
        if instruction.opcode.endswith("-start"):  # ((operands), (results))
            results = _parts(results)[1]
        return _arrays(results)
    operands = instruction.rest[: _closing(instruction.rest) + 1]
    # Operands are named; older and hand-written HLO gives their shapes, too.
    if not _arrays(operands):
        operands = " ".join(shapes.get(name, "") for name in re.findall(r"[\w.\-]+", operands))
    return _arrays(operands)


def _split_shape(text: str) -> tuple[str, str]:
    """Returns the shape that the text begins with, and what follows it."""
    end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Returns where the parenthesis closes that the text begins with."""
    depth = 0
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return position
    return len(text) - 1


def _parts(shape: str) -> list[str]:
    """Returns the elements of a tuple's shape."""
    parts, depth, start = [], 0, 1
    for position, letter in enumerate(shape):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[start:position].strip())
            start = position + 1
    return parts


def _arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape, those of tuples one after the other."""
    return tuple(
        Array(dtype, tuple(int(n.strip("<=")) for n in dimensions.split(",") if n))
        for dtype, dimensions in _ARRAY.findall(shape)
    )
