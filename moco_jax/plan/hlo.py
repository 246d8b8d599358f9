"""Parses the text of a compiled program (XLA's HLO): its instructions and how often each runs."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of one device.

    Attributes:
      dtype: in HLO's notation, such as bf16.
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
class Instruction:
    """An instruction of the program.

    Attributes:
      name: unique in its computation.
      shape: shape of the result in HLO's notation; a tuple if there are several arrays.
      opcode: such as fusion.
      rest: the rest of the line, operands in parentheses and attributes.
      operand_shapes: shapes of the operands in HLO's notation.
      times: number of times that the program runs it; None in a loop of unknown length.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    operand_shapes: tuple[str, ...] = ()
    times: int | None = 1

    @property
    def results(self) -> tuple[Array, ...]:
        return arrays(self.shape)

    @property
    def operands(self) -> tuple[Array, ...]:
        return arrays(" ".join(self.operand_shapes))

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
    yield from _walk(computations, entry, 1, enter)


def arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape in HLO's notation; those of nested tuples in order."""
    return tuple(
        Array(dtype, tuple(int(n.strip("<=")) for n in dimensions.split(",") if n))
        for dtype, dimensions in _ARRAY.findall(shape)
    )


def elements(shape: str) -> list[str]:
    """Returns the elements of a tuple's shape in HLO's notation."""
    parts, depth, start = [], 0, 1
    for position, letter in enumerate(shape):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[start:position].strip())
            start = position + 1
    return parts


def _computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif current is not None and (name := _INSTRUCTION.match(line)):
            shape, rest = _split_shape(line[name.end() :])
            opcode, _, rest = rest.partition("(")
            current.append(Instruction(name[1], shape, opcode.strip(), "(" + rest))
    return computations, entry


def _walk(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int | None,
    enter: Callable[[Instruction], bool],
) -> Iterator[Instruction]:
    """Yields the instructions of a computation that runs `times` times, and of those it calls."""
    own = computations.get(name, [])
    shapes = {instruction.name: instruction.shape for instruction in own}
    for instruction in own:
        yield dataclasses.replace(
            instruction, operand_shapes=_operand_shapes(instruction, shapes), times=times
        )
        if instruction.opcode.endswith(("-update", "-done")) or not enter(instruction):
            continue
        for called, inner in _calls(instruction):
            product = None if times is None or inner is None else times * inner
            yield from _walk(computations, called, product, enter)


def _calls(instruction: Instruction) -> Iterator[tuple[str, int | None]]:
    """Yields the computations that an instruction calls, and how often each; None: unknown."""
    times: int | None = 1
    if instruction.opcode == "while":
        trips = _TRIPS.search(instruction.rest)
        times = int(trips[1]) if trips else None
    for _, names in _CALLED.findall(instruction.rest):
        for name in re.findall(r"[\w.\-]+", names):
            yield name, times


def _operand_shapes(instruction: Instruction, shapes: dict[str, str]) -> tuple[str, ...]:
    operands = instruction.rest[: _closing(instruction.rest) + 1]
    # Operands are names; older and hand-written HLO has their shapes, too.
    if arrays(operands):
        return (operands,)
    return tuple(shapes[name] for name in re.findall(r"[\w.\-]+", operands) if name in shapes)


def _split_shape(text: str) -> tuple[str, str]:
    """Returns the shape at the start of the text, and the rest of the text."""
    end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Returns the position at which the parenthesis at the start of the text closes."""
    depth = 0
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return position
    return len(text) - 1
