"""Damaged and hostile versions of valid bytes. Every function draws from a `random.Random`."""

import copy
import json
import random
import struct
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = tarfile.BLOCKSIZE
_SIZES = (1, 2, 8, 64, 512, 4096)
_INTEGERS = (0, 1, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1)
_STRUCTS = ("<I", ">I", "<Q", ">Q", "<H", ">H")


def damaged(rng: random.Random, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Returns what was done, and the bytes after one or several mutations without a plan."""
    names, done = list(_DAMAGES), []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(names)
        data = _DAMAGES[name](rng, data, other)
        done.append(name)
    return "+".join(done), data


def _place(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Returns the start and the end of a random block; half of the blocks are aligned to 512."""
    start, size = rng.randrange(len(data) + 1), rng.choice(_SIZES)
    if rng.random() < 0.5:
        start, size = start // BLOCK * BLOCK, -(-size // BLOCK) * BLOCK
    return start, min(start + size, len(data))


def _flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(rng, data)
    fill = rng.choice((bytes([0]), bytes([255]), b"A", b""))
    return data[:start] + (fill * (end - start) or rng.randbytes(end - start)) + data[end:]


def _truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)[0]]


def _insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, _ = _place(rng, data)
    return data[:start] + rng.randbytes(rng.choice(_SIZES)) + data[start:]


def _delete(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + data[end:]


def _duplicate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    (start, end), (to, _) = _place(rng, data), _place(rng, data)
    return data[:to] + data[start:end] * rng.choice((1, 2, 50)) + data[to:]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)[0]] + other[_place(rng, other)[0] :]


def _length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes a number that may be a length or an offset: one that is at most the file's size."""
    for _ in range(200):
        kind = rng.choice(_STRUCTS)
        size = struct.calcsize(kind)
        if len(data) < size:
            break
        # Headers stand at the start and at the end.
        at = rng.choice((rng.randrange(len(data)), rng.randrange(min(256, len(data)))))
        at = min(rng.choice((at, len(data) - 1 - at)), len(data) - size)
        (value,) = struct.unpack_from(kind, data, at)
        if 0 < value <= len(data):
            new = rng.choice((*_INTEGERS, value + 1, value - 1, value * 2, value + 2**31))
            packed = struct.pack(kind, new % 2 ** (8 * size))
            return data[:at] + packed + data[at + size :]
    return data


_DAMAGES: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "truncate": _truncate,
    "insert": _insert,
    "delete": _delete,
    "duplicate": _duplicate,
    "splice": _splice,
    "length": _length,
}

# Values that a field of JSON does not expect. `evil_module` is a module that only a fuzzer has.
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -0.0, 0.5,
    float("nan"), float("inf"), "", "a", "\x00", "\udc80", "é" * 300, "x" * 100_000, "../../etc",
    "/dev/zero", "evil_module.Evil", [], {}, [[]], [None], {"": None}, {"a": {"b": 1}}, ["a", 1],
    [1e9] * 3, "1e999", "float32", "[1, 2]", "NaN",
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Returns a value that most fields of JSON do not expect."""
    return copy.deepcopy(rng.choice(_ODD))  # the containers are changed later


def odd_json(rng: random.Random, text: bytes) -> tuple[str, bytes]:
    """Returns what was done, and a JSON document with another type, key, depth or number."""
    if rng.random() < 0.06:
        opening = rng.choice((b"[", b'{"a":', b'[{"a":'))
        return "nested JSON", opening * rng.choice((500, 100_000))
    document, done = json.loads(text), []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        what, document = _odd_document(rng, document)
        done.append(what)
    return "+".join(done), json.dumps(document).encode("utf-8", "surrogatepass")


def _odd_document(rng: random.Random, document: Any) -> tuple[str, Any]:
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return "root", odd_value(rng)
    holder, key = rng.choice(places)
    what = rng.choice(("value", "value", "value", "missing", "renamed", "nested", "string"))
    if what == "value":
        holder[key] = odd_value(rng)
    elif what == "missing":
        del holder[key]
    elif what == "renamed" and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", "", key.upper()))] = holder.pop(key)
    elif what == "nested":
        holder[key] = [[[{"a": holder[key]}]]]
    else:
        holder[key] = str(holder[key])
    return f"{what} {str(key)[:40]}", document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each container with each of its keys, the inner ones too."""
    pending = [document] if isinstance(document, (dict, list)) else []
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                pending.append(holder[key])


# Field of a tar header -> offset, size.
_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "device": (329, 8),
    "prefix": (345, 155),
    "sparse": (386, 96),
}
_NUMBERS = (
    b"00000000000\0", b"77777777777\0", b"-0000000001\0", b"00000000001 ", b"9999999999\0\0",
    b"\xff" * 12, b"\xff" * 10 + b"\xfe\x00", b"\x80" + b"\x7f" * 11, b"\x80" + bytes(10) + b"\x05",
    b"\x80\0\0\0\x40\0\0\0\0\0\0\0", b"            ", b"\0" * 12, b"0x10\0\0\0\0\0\0\0\0",
    b"\xff" * 9 + b"\xf8\0\0",
)  # fmt: skip
_TYPES = b"01234567LKxgSDMNVX\0\xff"
_NAMES = (
    b"../../../../etc/passwd.jpg", b"/etc/x.jpg", b"a\0b.jpg", b"caf\xe9.jpg", b"", b".", b"..",
    b"train", b"train/", b"a//b/./c.jpg", b"\xff" * 100, b"x" * 100, b"train/cat/\xf0\x9f.png",
    b"con.jpg\n", b"\x1b[2Jx.jpg", b"train/\xe2\x80\xae/gpj.png", b"__MACOSX/a.jpg",
    b"test/cat/0.jpg",
)  # fmt: skip


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0") or b"0", 8)


def tar_headers(data: bytes) -> list[int]:
    """Returns the offsets of all header blocks of a valid tar, also those of long names."""
    found, at = [], 0
    while at + BLOCK <= len(data) and any(data[at : at + BLOCK]):
        found.append(at)
        # An own walk: tarfile hides the headers of long names and of PAX records.
        size = _octal(data[at + 124 : at + 136])
        kind = data[at + 156 : at + 157]
        at += BLOCK if kind in b"123456" else BLOCK + -(-size // BLOCK) * BLOCK
    return found


def sealed(data: bytes, at: int) -> bytes:
    """Returns a tar with the right checksum in the header at an offset."""
    block = bytearray(data[at : at + BLOCK])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + BLOCK :]


def odd_tar(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Returns what was done, and a tar of which a header has an odd field and a right checksum."""
    at = rng.choice(tar_headers(data))
    if data[at + 156 : at + 157] in b"xgL" and rng.random() < 0.5:
        return _odd_records(rng, data, at)
    name = rng.choice((*_FIELDS, "size", "size", "type", "type", "name"))
    offset, size = _FIELDS[name]
    if name in ("name", "linkname", "prefix"):
        value = rng.choice(_NAMES)
    elif name == "type":
        value = bytes([rng.choice(_TYPES)])
    elif name in ("magic", "sparse"):
        value = rng.randbytes(size)
    else:
        value = rng.choice(_NUMBERS)
    value = value[:size].ljust(size, b"\0")
    return f"header {name} at {at}", sealed(
        data[: at + offset] + value + data[at + offset + size :], at
    )


_RECORDS = (
    b"size=-1", b"size=99999999999999999999", b"size=x", b"path=../../x.jpg", b"path=",
    b"path=a\0b.jpg",
    b"linkpath=/etc/passwd", b"GNU.sparse.major=1", b"GNU.sparse.size=-5", b"GNU.sparse.map=1,2,3",
    b"GNU.sparse.realsize=99999999999", b"hdrcharset=BINARY", b"mtime=nan", b"uid=1e9",
    b"path=\xff\xfe",
    b"GNU.sparse.numblocks=999999999", b"GNU.sparse.offset=-1",
)  # fmt: skip


def _odd_records(rng: random.Random, data: bytes, at: int) -> tuple[str, bytes]:
    """Replaces the contents of a PAX header or of a long name."""
    records = rng.sample(_RECORDS, 2)
    lines = b"".join(b"%d %s\n" % (len(x) + len(str(len(x) + 4)) + 2, x) for x in records)
    if rng.random() < 0.3:
        lines = rng.choice(
            (b"-5 a=b\n", b"0 a=b\n", b"99999999999 a=b\n", b"a", b"5 a\n", b"7 a=b")
        )
    size = _octal(data[at + 124 : at + 136])
    body = lines.ljust(-(-len(lines) // BLOCK) * BLOCK, b"\0")
    end = at + BLOCK + -(-size // BLOCK) * BLOCK
    changed = data[: at + 124] + b"%011o\0" % len(lines) + data[at + 136 : at + BLOCK]
    return f"records at {at}: {lines[:60]!r}", sealed(changed + body + data[end:], at)
