"""Names and messages as printable text.

A file name on Linux is bytes. It may be no UTF-8, and it may hold line breaks and the control
sequences of terminals. In printed lines, logs and files of features, each byte that is not plain
text stands as `\\xNN`, and a backslash as `\\\\`. So different names stay different.
"""

import codecs
import os
import re
from typing import TextIO

# Control characters, the separators of lines, what changes the direction of text, and surrogates,
# which stand for bytes that are not UTF-8.
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_NAMES = re.compile(rf"[\\{_UNPRINTABLE}]")
_IN_MESSAGES = re.compile(rf"(?![\n\t])[{_UNPRINTABLE}]")
_ERRNO = re.compile(r"\[Errno -?\d+\] ")  # in the text of an OSError
_ESCAPED = re.compile(r"((?:\\x[0-9a-f]{2})+)|\\\\")
_QUOTED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")  # a surrogate in the repr of a name
_ERRORS = "moco_jax.escape"  # of `print`, see `make_printable`


def printable(name: str) -> str:
    r"""Returns a name as printable text: each other byte becomes `\xNN`, a backslash `\\`."""
    return _IN_NAMES.sub(lambda found: "\\\\" if found[0] == "\\" else _bytes(found[0]), name)


def original(text: str) -> str:
    """Returns the name of which `printable` made this text."""

    def character(found: re.Match) -> str:
        return os.fsdecode(bytes.fromhex(found[1].replace("\\x", ""))) if found[1] else "\\"

    return _ESCAPED.sub(character, text)


def message(text: str) -> str:
    r"""Returns a message whose unprintable bytes stand as `\xNN`; it keeps its lines and tabs.

    The numbers of errors of the system are left out.
    """
    return _escaped(_ERRNO.sub("", text))


def _escaped(text: str) -> str:
    return _QUOTED_BYTE.sub(r"\\x\1", _IN_MESSAGES.sub(lambda found: _bytes(found[0]), text))


def shortened(text: object, most: int = 300) -> str:
    """Returns a text of at most this many characters: a library may quote a whole file."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}..."


def line(text: str) -> str:
    r"""Returns a text as one line whose unprintable bytes stand as `\xNN`; backslashes stay."""
    return _escaped(text).replace("\n", r"\x0a").replace("\t", r"\x09")


def print_escaped(stream: TextIO) -> None:
    r"""Makes a stream print every character that it can't encode as the `\xNN` of its bytes.

    Under the locale C, or with PYTHONIOENCODING=ascii:strict, a print would raise instead.
    """
    codecs.register_error(_ERRORS, _encode_error)
    # Streams of tests may be no TextIOWrapper.
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors=_ERRORS)


def _encode_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _bytes(error.object[error.start : error.end]), error.end


def _bytes(text: str) -> str:
    r"""Returns the bytes of a text in a file name, each as `\xNN`."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name holds
        data = text.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)
