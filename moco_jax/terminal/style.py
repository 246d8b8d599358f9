"""How lines look: width, colour, the line that stays in place.

Colour and the live line are for terminals. `NO_COLOR` and `TERM=dumb` turn colour off;
`FORCE_COLOR` and `CLICOLOR_FORCE` turn it on without a terminal (no-color.org, force-color.org,
bixense.com/clicolors).
"""

import contextlib
import os
import re
import sys
import textwrap
import threading
from typing import Any, NamedTuple, TextIO

_COLUMNS = 80  # without a terminal
_NARROWEST = 20  # columns; a terminal that reports fewer is taken for this
_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}  # ECMA-48, SGR
_LABELS = {"error": "red", "warning": "yellow", "done": "green"}
_FORCING = ("FORCE_COLOR", "CLICOLOR_FORCE")
# Rows of tables are not wrapped: they have wide gaps, or borders.
_TABLE = re.compile(r"\S {3,}\S|^[|+]")
# Indented lines are commands to copy, which are not wrapped, except items, values and `name: text`.
_INDENTED_TEXT = re.compile(r"""^ +(- |[^'"=(;]+?: |\w+, )""")


def is_terminal(stream: TextIO | None) -> bool:
    """Returns whether a stream is a terminal."""
    try:
        return bool(stream and stream.isatty())
    except ValueError:  # closed
        return False


def is_live(stream: TextIO | None) -> bool:
    """Returns whether a line of the stream can stay in place and be drawn anew."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def width(stream: TextIO | None = None) -> int:
    """Returns the columns of a stream's terminal; 80 without one. Default the standard output."""
    chosen: Any = sys.stdout if stream is None else stream
    columns = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no file, or no terminal
        columns = os.get_terminal_size(chosen.fileno()).columns
    return max(columns, _NARROWEST) if columns else _COLUMNS


def has_colour(stream: TextIO | None = None) -> bool:
    """Returns whether lines of a stream may have colour. Default the standard output."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR"):
        return False
    if any(os.environ.get(name, "0") not in ("", "0") for name in _FORCING):
        return True
    return is_live(stream)


def bold(line: str, stream: TextIO | None = None) -> str:
    """Returns a text in bold where the stream has colour. Default the standard output."""
    return _styled(line, "bold", stream)


def coloured(line: str, colour: str, stream: TextIO | None = None) -> str:
    """Returns a text in 'red', 'green' or 'yellow', or as it is for '', where there is colour."""
    return _styled(line, colour, stream) if colour else line


def _styled(line: str, code: str, stream: TextIO | None) -> str:
    return f"\x1b[{_CODES[code]}m{line}\x1b[0m" if has_colour(stream) else line


def wrapped(lines: str, columns: int) -> str:
    """Returns a text wrapped between words; a path or another long word stays whole.

    Commands to copy, which are indented, and rows of tables are not wrapped.
    """
    return "\n".join(_wrapped_line(line, columns) for line in lines.split("\n"))


def _wrapped_line(line: str, columns: int) -> str:
    if len(line) <= columns or _TABLE.search(line.strip()):
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")))
    if indent and not _INDENTED_TEXT.match(line):
        return line
    return textwrap.fill(
        line,
        columns,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )


def fitted(line: str, columns: int) -> str:
    """Returns a line cut to a number of columns; dots stand for what is cut."""
    return line if len(line) <= columns else f"{line[: max(columns - 3, 0)]}..."


def middle_cut(text: str, columns: int) -> str:
    """Returns a text cut to a number of columns in its middle, which says least of a path."""
    if len(text) <= columns:
        return text
    last = max(columns - 3, 0) * 2 // 3
    return f"{text[: columns - 3 - last]}...{text[-last:]}"


class _LiveLine(NamedTuple):
    owner: Any
    stream: TextIO
    length: int
    stays: bool


# The threads that draw and print share one terminal.
LOCK = threading.RLock()
_live: _LiveLine | None = None


def draw(line: str, stream: TextIO, owner: Any, *, stays: bool = False) -> None:
    """Draws the live line, in place of the one before; no escape codes are needed.

    Args:
      line: shorter than the terminal is wide; see `fitted`.
      stream: a terminal.
      owner: whose line it is; see `clear`.
      stays: whether the line stays above what another owner prints next; else it vanishes.
    """
    global _live
    with LOCK, contextlib.suppress(OSError, ValueError):
        if _live and (_live.stream is not stream or (_live.stays and _live.owner is not owner)):
            clear()
        before = _live.length if _live else 0
        _live = _LiveLine(owner, stream, len(line), stays)
        stream.write(f"\r{line.ljust(before)}")
        stream.flush()


def clear(owner: Any = None) -> None:
    """Makes room for a printed line: ends or removes the live line, or only that of an owner."""
    global _live
    with LOCK, contextlib.suppress(OSError, ValueError):
        if _live is None or owner not in (None, _live.owner):
            return
        live, _live = _live, None
        live.stream.write("\n" if live.stays else f"\r{' ' * live.length}\r")
        live.stream.flush()


def shown(lines: str, stream: TextIO) -> str:
    """Returns a text as a stream shows it: wrapped on a terminal."""
    return wrapped(lines, width(stream)) if is_terminal(stream) else lines


def say(line: str) -> None:
    """Prints a text on the standard output, see `print_line`."""
    print_line(line, sys.stdout)


def print_line(line: str, stream: TextIO) -> None:
    """Prints a text below or in place of the live line, wrapped on a terminal.

    A text that can't be written, as on a full disk, is lost.
    """
    with LOCK, contextlib.suppress(OSError, ValueError):
        clear()
        print(_labelled(shown(line, stream), stream), file=stream, flush=True)


def _labelled(line: str, stream: TextIO) -> str:
    """Returns a text whose first word has a colour if it is a label, such as `warning:`."""
    label, colon, rest = line.partition(":")
    code = _LABELS.get(label)
    return f"{_styled(label + colon, code, stream)}{rest}" if code else line
