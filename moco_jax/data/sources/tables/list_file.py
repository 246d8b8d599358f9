"""Reads the rows of a list of images: CSV, TSV, JSON lines, or text with a path on each line.

Rows are yielded one at a time. A row that can't be read has a reason in place of its cells.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator
from typing import TextIO

from moco_jax.data.sources.file_types import is_image
from moco_jax.data.sources.regular_file import kind
from moco_jax.data.sources.storage.files import open_file, stream
from moco_jax.terminal.paths import is_url

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".txt")
_MAX_LINE = 1 << 20  # characters
_SPACES = " \t\r\n"  # around a cell; other white space may be a part of a name
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_Cells = tuple[int, "list[str] | dict[str, str]", str]


# The line, counted from 1; as many cells as there are columns, [] for a bad row; why it can't be
# read, or ''. A class would take a tenth of the time that a row takes.
Row = tuple[int, list[str], str]


def read(path: str) -> tuple[list[str], bool, Iterator[Row]]:
    """Returns the names of the columns, whether the file names them, and the rows.

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
    return columns, has_header, _rows(path, encoding, columns, has_header)


def _columns(path: str, encoding: str) -> tuple[list[str], bool]:
    """Returns the names of the columns, and whether the file names them."""
    with _opened(path, encoding) as file:
        first = next(_cells(path, _lines(file, path)), None)
    if first is None:
        raise ValueError(f"the list {path} is empty")
    _, cells, bad = first
    if isinstance(cells, dict):
        if bad:
            raise ValueError(f"the list {path}, line 1: {bad}")
        return list(filter(None, cells)), True
    numbers = [str(number + 1) for number in range(len(cells))]
    names = [cell or number for cell, number in zip(cells, numbers, strict=True)]
    named = len(set(names)) == len(names) and not any(map(_is_path, names))
    return (names, True) if named and not path.lower().endswith(".txt") else (numbers, False)


def _is_path(text: str) -> bool:
    return is_image(text) or "/" in text


def _rows(path: str, encoding: str, columns: list[str], has_header: bool) -> Iterator[Row]:
    with _opened(path, encoding) as file:
        may_lack = path.lower().endswith(".txt")  # a line without a label
        skipped = has_header
        for line, cells, bad in _cells(path, _lines(file, path)):
            if isinstance(cells, dict):
                yield line, [cells.get(name, "") for name in columns], bad
            elif skipped:
                skipped = False
            elif len(cells) == len(columns):
                yield line, cells, ""
            elif may_lack and len(cells) < len(columns):
                yield line, cells + [""] * (len(columns) - len(cells)), ""
            else:
                yield line, [], f"{len(cells)} columns; expected {len(columns)}"


def _opened(path: str, encoding: str) -> TextIO:
    # Bytes that are not UTF-8 become surrogates, which `_lines` refuses with the line.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    contents = stream(open_file(path))
    return io.TextIOWrapper(contents, encoding=encoding, errors=errors, newline="")


def _lines(file: TextIO, path: str) -> Iterator[str]:
    """Yields the lines; raises a ValueError for one that is not text."""
    number, encoding = 0, file.encoding.upper().removesuffix("-SIG")
    while True:
        number += 1
        try:
            line = file.readline(_MAX_LINE)
            if not line.isascii():
                line.encode()
        except UnicodeError as error:
            raise ValueError(
                f"the list {path}, line {number}: the text is not {encoding}; save the list as "
                "UTF-8"
            ) from error
        if not line:
            return
        if len(line) == _MAX_LINE:
            raise ValueError(
                f"the list {path}, line {number}: more than {_MAX_LINE} characters; is it a list?"
            )
        if number == 1 and line.count("\0") > 1:
            raise ValueError(
                f"the list {path} has NUL characters in its first line; it may be UTF-16 without a "
                "mark, or no text: save the list as UTF-8"
            )
        yield line


def _cells(path: str, lines: Iterator[str]) -> Iterator[_Cells]:
    """Yields the number of the line, texts or {column: text}, and what is wrong with the row."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".jsonl":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield (number, *_json(line))
    elif ending == ".txt":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, [cell.strip(_SPACES) for cell in _words(line)], ""
    else:
        yield from _csv(path, ending, lines)


def _csv(path: str, ending: str, lines: Iterator[str]) -> Iterator[_Cells]:
    first = next(lines, "")
    delimiter = "\t" if ending == ".tsv" else ";" if ";" in first and "," not in first else ","

    def whole() -> Iterator[str]:
        yield first
        yield from lines

    reader = csv.reader(whole(), delimiter=delimiter)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"the list {path}, line {start}: {error}; a quote may not be closed"
            ) from error
        cells = [cell.strip(_SPACES) for cell in cells]
        if any(cells):
            yield start, cells, ""
        start = reader.line_num + 1


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
