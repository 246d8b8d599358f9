"""Reads the rows of a list of images: CSV, TSV, JSON lines, or text with a path on each line.

Rows are yielded some at a time. A row that can't be read has a reason in place of its cells.
"""

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from moco_jax.data.sources.file_types import is_image
from moco_jax.data.sources.regular_file import kind
from moco_jax.data.sources.storage.files import open_file, stream
from moco_jax.terminal.paths import is_url

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".txt")
_MAX_LINE = 1 << 20  # characters
_BLOCK = 1 << 18  # characters that are read at once
_SPACES = " \t\r\n"  # around a cell; other white space may be a part of a name
_BREAK = re.compile(r"\r\n|\r|\n")
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_AT_ONCE = 256  # rows; with more lists alive, Python would search them for garbage again and again


class Block(NamedTuple):
    """Some rows of a list, by column: a Python object for each row would take most of the time."""

    lines: Sequence[int]  # of each row, counted from 1
    columns: Sequence[Sequence[str]]  # as many as the list has: the cells of these rows
    bad: Sequence[tuple[int, str]]  # the lines of rows that can't be read, and why


_Rows = tuple[Sequence[int], "list[Any]", "list[tuple[int, str]]"]  # lines, cells, bad rows


def read(path: str) -> tuple[list[str], bool, Iterator[Block]]:
    """Returns the names of the columns, whether the file names them, and the rows in blocks.

    Columns without names are called '1', '2' and so on.

    Raises:
      ValueError: if the file is empty or is not text in UTF-8, or in UTF-16 with a mark. The rows
        raise it too.
      OSError: if the file can't be read.
    """
    if not is_url(path) and (what := kind(os.stat(path).st_mode)):
        raise ValueError(f"can't read the list {path}: it is {what}; allowed: a file")
    mark = open_file(path).read_at(0, 4)
    if mark == codecs.BOM_UTF32_LE:
        raise ValueError(f"the list {path} is in UTF-32; save it as UTF-8")
    encoding = _MARKS.get(mark[:2], "utf-8-sig")
    columns, has_header = _columns(path, encoding)
    return columns, has_header, _blocks(path, encoding, columns, has_header)


def _columns(path: str, encoding: str) -> tuple[list[str], bool]:
    """Returns the names of the columns, and whether the file names them."""
    with _opened(path, encoding) as file:
        for lines, rows, bad in _rows(path, _lines(file, path)):
            if bad and (not rows or bad[0][0] < lines[0]):
                raise ValueError(f"the list {path}, line {bad[0][0]}: {bad[0][1]}")
            if rows and path.lower().endswith(".jsonl"):
                return list(filter(None, rows[0])), True
            if cells := next(filter(any, map(_stripped, rows)), None):
                break
        else:
            raise ValueError(f"the list {path} is empty")
    numbers = [str(number + 1) for number in range(len(cells))]
    names = [cell or number for cell, number in zip(cells, numbers, strict=True)]
    named = len(set(names)) == len(names) and not any(map(_is_path, names))
    return (names, True) if named and not path.lower().endswith(".txt") else (numbers, False)


def _is_path(text: str) -> bool:
    return is_image(text) or "/" in text


def _blocks(path: str, encoding: str, names: list[str], has_header: bool) -> Iterator[Block]:
    may_lack = path.lower().endswith(".txt")  # a line without a label
    with _opened(path, encoding) as file:
        for lines, rows, bad in _rows(path, _lines(file, path)):
            if path.lower().endswith(".jsonl"):
                columns = [[row.get(name, "") for row in rows] for name in names]
                yield Block(lines, columns, bad)
                continue
            whole = not has_header and {*map(len, rows)} == {len(names)}
            columns = list(map(_stripped, zip(*rows, strict=True))) if whole else []
            if not (columns and all(columns[0])):
                lines, rows, bad = _regular(lines, rows, len(names), may_lack)
                if has_header and rows:
                    lines, rows, has_header = lines[1:], rows[1:], False
                columns = list(map(_stripped, zip(*rows, strict=True))) or [[] for _ in names]
            yield Block(lines, columns, bad)


def _stripped(cells: Sequence[str]) -> list[str]:
    return [cell.strip(_SPACES) for cell in cells]


def _regular(
    lines: Sequence[int], rows: list[list[str]], count: int, may_lack: bool
) -> tuple[list[int], list[list[str]], list[tuple[int, str]]]:
    """Returns the rows that have as many cells as there are columns, and the others; no empty ones.

    Cells that may lack are empty texts.
    """
    kept, good, bad = [], [], []
    for line, row in zip(lines, rows, strict=True):
        if not any(_stripped(row)):
            continue
        if len(row) == count or (may_lack and len(row) < count):
            kept.append(line)
            good.append(row + [""] * (count - len(row)))
        else:
            bad.append((line, f"{len(row)} columns; expected {count}"))
    return kept, good, bad


def _opened(path: str, encoding: str) -> TextIO:
    # Bytes that are not UTF-8 become surrogates, which `_lines` refuses with the line.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    contents = stream(open_file(path))
    return io.TextIOWrapper(contents, encoding=encoding, errors=errors, newline="")


def _lines(file: TextIO, path: str) -> Iterator[str]:
    """Yields the lines; raises a ValueError for one that is not text."""
    number, rest, last = 0, "", False
    encoding = file.encoding.upper().removesuffix("-SIG")
    while not last:
        try:
            read = file.read(_BLOCK)
        except UnicodeError as error:
            raise ValueError(
                f"the list {path}, line {number + 1} or later: the text is not {encoding}; save "
                "the list as UTF-8"
            ) from error
        text, last = rest + read, not read
        # Of a '\r' at the end, the other half of the line break may follow.
        end = len(text) if last else max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
        lines, rest = list(io.StringIO(text[:end], newline="")), text[end:]
        if not text.isascii() and (wrong := next(filter(_has_surrogate, lines), None)):
            raise ValueError(
                f"the list {path}, line {number + lines.index(wrong) + 1}: the text is not "
                f"{encoding}; save the list as UTF-8"
            )
        if len(text) >= _MAX_LINE:
            long = (
                i for i, line in enumerate([*lines, rest], number + 1) if len(line) >= _MAX_LINE
            )
            for found in long:
                raise ValueError(
                    f"the list {path}, line {found}: more than {_MAX_LINE} characters; is it a "
                    "list?"
                )
        if not number and [*lines, rest][0].count("\0") > 1:
            raise ValueError(
                f"the list {path} has NUL characters in its first line; it may be UTF-16 without a "
                "mark, or no text: save the list as UTF-8"
            )
        yield from lines
        number += len(lines)


def _has_surrogate(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return True
    return False


def _rows(path: str, lines: Iterator[str]) -> Iterator[_Rows]:
    """Yields some rows: their lines, their cells (of JSON, {column: text}), and bad rows."""
    ending = os.path.splitext(path)[1].lower()
    if ending in (".csv", ".tsv"):
        yield from _csv(path, ending, lines)
        return
    numbered = enumerate(lines, 1)
    while texts := list(itertools.islice(numbered, _AT_ONCE)):
        texts = [(number, line) for number, line in texts if line.strip()]
        if ending == ".txt":
            yield [number for number, _ in texts], [_words(line) for _, line in texts], []
            continue
        found = [(number, *_json(line)) for number, line in texts]
        bad = [(number, why) for number, _, why in found if why]
        good = [(number, cells) for number, cells, why in found if not why]
        yield [number for number, _ in good], [cells for _, cells in good], bad


def _csv(path: str, ending: str, lines: Iterator[str]) -> Iterator[_Rows]:
    first = next(lines, "")
    delimiter = "\t" if ending == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    before, rows = 0, []
    try:
        while rows.extend(itertools.islice(reader, _AT_ONCE)) or rows:
            yield _line_numbers(before, reader.line_num, rows), rows, []
            before, rows = reader.line_num, []
    except csv.Error as error:
        line = [*_line_numbers(before, -1, [*rows, []])][-1]
        raise ValueError(
            f"the list {path}, line {line}: {error}; a quote may not be closed"
        ) from error


def _line_numbers(before: int, last: int, rows: list[list[str]]) -> Sequence[int]:
    """Returns the line in which each row begins; a quoted cell may have line breaks.

    Args:
      before: the lines before the rows.
      last: the line in which the last row ends.
      rows: of cells.
    """
    if last == before + len(rows):
        return range(before + 1, last + 1)
    lengths = [1 + sum(len(_BREAK.findall(cell)) for cell in row) for row in rows]
    return [before + 1 + ended for ended in itertools.accumulate([0, *lengths[:-1]])]


def _words(line: str) -> list[str]:
    """Returns the path, and the label behind a tab or behind the ending of an image and a space."""
    if "\t" in line:
        return line.split("\t")
    path, space, label = line.rstrip(_SPACES).rpartition(" ")
    if space and is_image(path.rstrip(_SPACES)) and not is_image(label):
        return [path, label]
    return [line]


def _json(line: str) -> tuple[dict[str, str], str]:
    """Returns the texts and whole numbers of a JSON object, or what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "no JSON object"
    if not isinstance(found, dict):
        return {}, "no JSON object"
    kept = {}
    for key, value in found.items():
        if isinstance(value, str):
            kept[key] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            kept[key] = str(value)
        elif value is None:
            kept[key] = ""
    try:
        "".join((*kept, *kept.values())).encode()
    except UnicodeEncodeError:
        return {}, "half of a surrogate pair"
    return kept, ""
