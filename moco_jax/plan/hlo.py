"""Parses the text of a compiled program (XLA's HLO): its instructions and how often each runs."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"[\w.\-]+")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of one device."""

    dtype: str  # in HLO's notation, such as bf16
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
class Instruction:
    """An instruction of the program."""

    name: str  # unique in its computation
    results: tuple[Array, ...]
    opcode: str  # such as fusion
    operands: tuple[Array, ...]
    rest: str  # the rest of the line, operands in parentheses and attributes
    times: int | None = 1  # that the program runs it; None in a loop of unknown length

    @property
    def source(self) -> str:
        """The operation of the Python program that it was compiled from; "" if unknown."""
        source = _SOURCE.search(self.rest)
        return source[1] if source else ""


def instructions(
    hlo: str, enter: Callable[[Instruction], bool] = lambda _: True
) -> Iterator[Instruction]:
    """Yields the instructions of a program's entry computation and of the computations it calls.

    Args:
      hlo: `compiled.as_text()`.
      enter: returns whether to yield the computations that an instruction calls, too. The default
        enters all, and every branch of a conditional.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations, entry = _computations(hlo)
    if not entry:
        raise ValueError("the text is not an HLO module: it has no entry computation")

    def walk(name: str, times: int | None) -> Iterator[Instruction]:
        """Yields the instructions of a computation that runs `times` times, and of its calls."""
        for instruction in computations.get(name, []):
            yield dataclasses.replace(instruction, times=times)
            if instruction.opcode.endswith(("-update", "-done")) or not enter(instruction):
                continue
            inner = 1
            if instruction.opcode == "while":
                trips = _TRIPS.search(instruction.rest)
                inner = int(trips[1]) if trips else None
            product = None if times is None or inner is None else times * inner
            for _, names in _CALLED.findall(instruction.rest):
                for called in _NAME.findall(names):
                    yield from walk(called, product)

    yield from walk(entry, 1)


def _arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape in HLO's notation; those of nested tuples in order."""
    return tuple(
        Array(dtype, tuple(int(n.strip("<=")) for n in dimensions.split(",") if n))
        for dtype, dimensions in _ARRAY.findall(shape)
    )


def _computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = []
            results: dict[str, tuple[Array, ...]] = {}  # of the computation's instructions
            entry = header[2] if header[1] else entry
        elif current is not None and (name := _INSTRUCTION.match(line)):
            text = line[name.end() :]  # shape opcode(operands), attributes
            end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
            opcode, _, rest = text[end:].partition("(")
            rest = "(" + rest
            results[name[1]] = _arrays(text[:end])
            # Operands are names; older and hand-written HLO has their shapes, too.
            listed = rest[: _closing(rest) + 1]
            operands = _arrays(listed) or tuple(
                array for operand in _NAME.findall(listed) for array in results.get(operand, ())
            )
            current.append(Instruction(name[1], results[name[1]], opcode.strip(), operands, rest))
    return computations, entry


def _closing(text: str) -> int:
    """Returns the position at which the parenthesis at the start of the text closes."""
    depth = 0
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return position
    return len(text) - 1
