"""Lists the members of a tar archive, without trusting its headers.

Python's tarfile allocates what a header asks for, takes quadratic time on some, recurses on others,
and takes a damaged header for the end of the archive. This reader allows for each header only what
real ones need, and stops at the first damaged one. It reads the formats v7, ustar, GNU and pax
(POSIX.1-2001, pax interchange format; GNU tar manual, "Basic Tar Format").
"""

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

_BLOCK = 512
_MAX_PADDING, _CHUNK = 64 << 20, 1 << 20
_ZEROS = bytes(_BLOCK)
# Of the long names and attributes of a member; real ones have some kilobytes.
_MAX_EXTENDED_BYTES = 256 << 10
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_NUMBER = re.compile(rb"\d{1,19}")
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "named pipe",
    b"S": "sparse file",
}
_NAMED = {b"L": "path", b"K": "linkpath"}  # what the long names of GNU tar are in pax
_WITHOUT_DATA = frozenset(("hard link", "link", "device", "folder", "named pipe"))


class DamagedTar(ValueError):
    """Raised for an archive that is damaged or no tar; the message has the reason."""


class Member(NamedTuple):
    """A member of an archive."""

    name: str  # bytes that are not UTF-8 are surrogates, as in `os.fsdecode`
    kind: str  # a value of _KINDS, or 'member of type X'
    offset: int  # of its data, in bytes
    size: int  # of its data, in bytes
    target: str  # of a link; '' for others


def members(file: BinaryIO, warn: Callable[[str], object]) -> Iterator[Member]:
    """Yields the members of an uncompressed archive.

    Args:
      file: the archive.
      warn: called if the end of the archive is not the end of the file.

    Raises:
      DamagedTar: at the first damaged header.
      OSError: if the disk can't be read.
    """
    end = file.seek(0, os.SEEK_END)
    offset, count = 0, 0
    everywhere: dict[str, Any] = {}  # what a global pax header says of all members
    own: dict[str, Any] = {}  # what the headers before a member say of it
    while header := _at(file, offset, _BLOCK):
        if header == _ZEROS:
            if (more := _data_after(file, offset)) is not None:
                warn(
                    f"the archive ends at byte {offset}, and what follows at byte {more} is not "
                    "read; if archives were joined, tar --extract --ignore-zeros unpacks all"
                )
            return
        if not _has_checksum(header):
            what = f"after {count} members" if count else "so it is not a tar file"
            raise DamagedTar(f"no tar header at byte {offset}, {what}")
        kind, size = header[156:157], _number(header[124:136], offset)
        if kind in b"xgXLK":
            data = _extended(file, offset, size)
            found = _attributes(data, offset) if kind in b"xgX" else {_NAMED[kind]: _text(data)}
            (everywhere if kind == b"g" else own).update(found)
            offset += _BLOCK + _padded(size)
            continue
        member, offset = _member(file, header, offset, size, everywhere | own)
        if offset > end:
            where = f"the member at byte {member.offset}"
            raise DamagedTar(f"{where} reaches beyond the end of the file")
        yield member
        own, count = {}, count + 1
    if not offset:
        raise DamagedTar("the file is empty")
    warn(f"the archive has no end mark; it may be cut off after {count} members")


def _data_after(file: BinaryIO, offset: int) -> int | None:
    """Returns where the zeros from this byte on end, None at the end of the file.

    Writers fill the last 10 kB with zeros, some of them more; the search has an end.
    """
    for start in range(offset, offset + _MAX_PADDING, _CHUNK):
        chunk = _at(file, start, _CHUNK)
        if not chunk:
            break
        if rest := chunk.lstrip(b"\0"):
            return start + len(chunk) - len(rest)
    return None


def _member(
    file: BinaryIO, header: bytes, offset: int, size: int, extended: dict[str, Any]
) -> tuple[Member, int]:
    """Returns a member and the offset of the next header."""
    name = extended.get("path") or _name(header)
    kind = _KINDS.get(header[156:157]) or f"member of type {ascii(chr(header[156]))}"
    if kind == "file" and name.endswith("/"):  # as in the format v7
        kind = "folder"
    size = 0 if kind in _WITHOUT_DATA else extended.get("size", size)
    offset += _BLOCK
    if kind == "sparse file" and header[482]:
        while (block := _at(file, offset, _BLOCK)) and len(block) == _BLOCK:
            offset += _BLOCK
            if not block[504]:
                break
    if "sparse" in extended and kind == "file":
        kind = "sparse file"
    target = extended.get("linkpath") or _text(header[157:257])
    return Member(name, kind, offset, size, target), offset + _padded(size)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU tar has other values in place of the prefix.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Returns the bytes at an offset; fewer at the end of the file."""
    file.seek(offset)
    return file.read(size)


def _has_checksum(header: bytes) -> bool:
    """Returns whether a header is whole: the sum of its bytes, its checksum taken as spaces."""
    found = _OCTAL.fullmatch(header[148:156])
    if len(header) < _BLOCK or not found or not found[1]:
        return False
    rest = header[:148] + header[156:]
    wanted = int(found[1], 8) - 8 * ord(" ")
    total = sum(rest)
    # Some old programs take bytes as signed.
    return wanted == total or wanted == total - 256 * sum(byte > 127 for byte in rest)


def _number(field: bytes, offset: int) -> int:
    """Returns the number in a field: octal digits, or binary if its first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        negative = field[0] == 0xFF
    else:
        found = _OCTAL.fullmatch(field)
        negative, value = not found, int(found[1] or b"0", 8) if found else 0
    if negative or value >= 1 << 63:
        raise DamagedTar(f"the member at byte {offset} has an impossible size ({field!r})")
    return value


def _extended(file: BinaryIO, offset: int, size: int) -> bytes:
    """Returns the data of a header that extends the next one."""
    if size > _MAX_EXTENDED_BYTES:
        raise DamagedTar(
            f"the header at byte {offset} has {size} bytes; allowed: {_MAX_EXTENDED_BYTES}"
        )
    data = _at(file, offset + _BLOCK, size)
    if len(data) < size:
        raise DamagedTar(f"the header at byte {offset} reaches beyond the end of the file")
    return data


def _attributes(data: bytes, offset: int) -> dict[str, Any]:
    """Returns path, linkpath, size and sparse (if it is) from the records of a pax header."""
    found: dict[str, Any] = {}
    start = 0
    while start < len(data) and data[start]:
        space = data.find(b" ", start, start + 8)
        length = data[start : max(space, start)]
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise DamagedTar(f"the pax header at byte {offset} is damaged")
        if key in (b"path", b"linkpath"):
            found[key.decode()] = value.decode(errors="surrogateescape")
        elif key == b"size":
            if not _NUMBER.fullmatch(value):
                raise DamagedTar(f"the pax header at byte {offset} has an impossible size")
            found["size"] = int(value)
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = True
            if key == b"GNU.sparse.name":
                found["path"] = value.decode(errors="surrogateescape")
        start = end
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _padded(size: int) -> int:
    """Returns a size rounded up to whole blocks."""
    return -(-size // _BLOCK) * _BLOCK
