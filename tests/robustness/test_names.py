"""Names and messages are printable, and different names stay different."""

import io
import os
import random

import pytest

from moco_jax import text

NAMES = [
    ("a/b é 日本.jpg", "a/b é 日本.jpg"),
    ("👨‍👩‍👧.png", "👨‍👩‍👧.png"),
    (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
    (r"caf\xe9.jpg", r"caf\\xe9.jpg"),
    ("two\nlines\t.jpg", r"two\x0alines\x09.jpg"),
    ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
    ("a\u202egpj.exe", r"a\xe2\x80\xaegpj.exe"),
    ("\x85", r"\xc2\x85"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_names(name, shown):
    assert text.printable(name) == shown
    assert text.original(shown) == name
    shown.encode()


def test_random_names_come_back_and_stay_different():
    rng = random.Random(0)
    pieces = [b"\\", b"\\x", b"e9", b"\xe9", "é".encode(), b"\n", b"\x1b", b"x", b"\xed\xa0\x80"]
    names = set()
    for _ in range(5000):
        parts = [rng.choice([*pieces, rng.randbytes(rng.randrange(4))]) for _ in range(6)]
        names.add(os.fsdecode(b"".join(parts)))
    shown = {name: text.printable(name) for name in names}
    assert len(set(shown.values())) == len(names)
    for name, printed in shown.items():
        assert text.original(printed) == name
        assert printed.encode() and not any(ord(c) < 32 or 126 < ord(c) < 160 for c in printed)


def test_a_message_keeps_its_lines_and_what_is_escaped_already():
    name = os.fsdecode(b"caf\xe9")
    error = OSError(2, "No such file or directory", name)
    assert text.message(f"{error}\n\tnext\x1b[2J") == (
        "No such file or directory: 'caf\\xe9'\n\tnext\\x1b[2J"
    )
    assert text.message(text.printable(name + "\\")) == "caf\\xe9\\\\"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_prints_every_name(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors="strict")
    text.print_escaped(stream)
    print("é日", os.fsdecode(b"\xff"), "\ud800", file=stream, flush=True)
    expected = {
        "ascii": rb"\xc3\xa9\xe6\x97\xa5 \xff \xed\xa0\x80",
        "latin-1": b"\xe9" + rb"\xe6\x97\xa5 \xff \xed\xa0\x80",
        "utf-8": "é日".encode() + rb" \xff \xed\xa0\x80",
    }
    assert raw.getvalue() == expected[encoding] + b"\n"
