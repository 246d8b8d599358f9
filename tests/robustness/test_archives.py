"""Damaged and malicious archives end in one message: no other exception, no hang, no flood."""

import bz2
import gzip
import os
import random
import re
import shutil
import subprocess
import tarfile

import pytest

from moco_jax.data.sources.archives import tar_archive
from tests.data.sources.stores import open_images
from tests.data.sources.watchdog import fuzz, no_hang, opens_or_fails

_NUMBERS = (
    b"77777777777",
    b"-0000000001",
    b"00000000000",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"\x80" + bytes(3) + b"\x40" + bytes(7),
    b"99999999999",
    b"           ",
)
_PAX = (
    {"size": "-512"},
    {"size": "9" * 5000},
    {"size": "1e400"},
    {"mtime": "nan"},
    {"path": "a\0b.jpg"},
    {"path": "../../x.jpg"},
    {"path": "a/" * 400 + "x.jpg"},
    {"linkpath": "loop.jpg"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"},
    {"GNU.sparse.map": "0,1,2", "GNU.sparse.size": "5"},
    {"GNU.sparse.map": "x", "GNU.sparse.size": "-5"},
    {"hdrcharset": "BINARY"},
)


def member(name, data=b"", kind=tarfile.REGTYPE, link="", pax=None, form=tarfile.PAX_FORMAT):
    """Returns the blocks of one member."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    info.pax_headers = pax or {}
    blocks = info.tobuf(form, errors="surrogateescape")
    return blocks + data + bytes(-len(data) % 512)


def small_tar(rng):
    """Returns an archive with all kinds of members."""
    members = [
        member("a/1.jpg", b"x" * rng.randrange(1500)),
        member("a/2.jpg", b"y" * 600),
        member("b/3.jpg", b""),
        member("b/4.jpg", kind=tarfile.LNKTYPE, link="a/1.jpg"),
        member("b/5.jpg", kind=tarfile.SYMTYPE, link="../a/2.jpg"),
        member("b", kind=tarfile.DIRTYPE),
        member("n" * 150 + ".jpg", b"z", form=tarfile.GNU_FORMAT),
        member("p.jpg", b"pax", pax=dict(rng.choice(_PAX))),
        member("s.jpg", b"1\n0\n5\nabcde" + bytes(501), kind=tarfile.GNUTYPE_SPARSE),
        member("notes.txt", b"text"),
    ]
    rng.shuffle(members)
    return bytearray(b"".join(members) + bytes(1024))


def with_checksum(block):
    """Sets the checksum of a header block."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def mutated_tar(seed):
    """Returns the bytes of a damaged archive."""
    rng = random.Random(seed)
    data = small_tar(rng)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(0, len(data) // 512) * 512
        how = rng.randrange(7)
        if how == 0:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif how == 1:
            del data[rng.randrange(len(data)) :]
            data += bytes(rng.choice((0, 1, 512)))
        elif how == 2:  # a number in a header
            start, length = rng.choice(((124, 12), (136, 12), (100, 8), (329, 8), (483, 12)))
            data[at + start : at + start + length] = rng.choice(_NUMBERS)[:length].ljust(length)
        elif how == 3:  # the type of a member
            data[at + 156 : at + 157] = rng.choice((b"0", b"1", b"2", b"5", b"6", b"S", b"x", b"g"))
        elif how == 4:
            data[at:at] = data[at : at + 512 * rng.randrange(1, 4)]
        elif how == 5:
            start = rng.choice((0, 157, 345))
            data[at + start : at + start + 4] = rng.choice((b"/../", b"\0\0\0\0", b"\xff\xfe\n\r"))
        else:
            data[at : at + 512] = rng.randbytes(512)
        if how in (2, 3, 5) and len(data) >= at + 512:
            data[at : at + 512] = with_checksum(data[at : at + 512])
        if len(data) < 512:
            break
    return bytes(data)


@pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 6000), marks=pytest.mark.slow)]
)
def test_damaged_tars(tmp_path, seeds):
    assert 0 < fuzz(tmp_path / "x.tar", mutated_tar, seeds) < len(seeds)


@pytest.mark.parametrize(
    "seeds", [range(100), pytest.param(range(100, 2000), marks=pytest.mark.slow)]
)
def test_damaged_compressed_tars(tmp_path, seeds):
    def mutate(seed):
        data = gzip.compress(mutated_tar(seed), 1)
        at = random.Random(seed).randrange(len(data)) if seed % 2 else None
        return data if at is None else data[:at] + bytes([seed % 256]) + data[at + 1 :]

    assert fuzz(tmp_path / "x.tar.gz", mutate, seeds) < len(seeds)


def header(name, size, kind=b"0"):
    """Returns a header block with the 12 bytes `size`."""
    block = bytearray(member(name)[:512])
    block[124:136], block[156:157] = size, kind
    return bytes(with_checksum(block))


def binary(number):
    """Returns a number as GNU tar writes large ones."""
    return (
        (number % (1 << 96)).to_bytes(12, "big")
        if number < 0
        else (b"\x80" + number.to_bytes(11, "big"))
    )


GOOD = member("a.jpg", b"abc")
END = bytes(1024)


@pytest.mark.parametrize(
    "data, message",
    [
        (header("b.jpg", binary(-512)) + GOOD, "an impossible size"),  # CVE-2025-8194
        (header("b.jpg", binary(-1024)) + GOOD, "an impossible size"),
        (header("x", binary(-512), b"x") + GOOD, "an impossible size"),
        (header("x", binary(-512), b"L") + GOOD, "an impossible size"),
        (header("b.jpg", b"-0000000512 ") + GOOD, "an impossible size"),
        (header("b.jpg", binary(1 << 62)), "reaches beyond the end of the file"),
        (header("b.jpg", binary(1 << 80)), "an impossible size"),
        (header("b.jpg", binary(1 << 62), b"x"), "has 4611686018427387904 bytes; allowed: 262144"),
        (header("b.jpg", binary(1 << 62), b"L"), "allowed: 262144"),
        (header("b.jpg", b"00000010000\0"), "reaches beyond the end of the file"),
        (member("b.jpg", b"abc", pax={"size": "-512"}), "an impossible size"),
        (member("b.jpg", b"abc", pax={"size": "9" * 5000}), "an impossible size"),
        (member("b.jpg", b"abc", pax={"size": "1e400"}), "an impossible size"),
        (header("x", b"00000000012\0", b"x") + b"9 path=abc" + bytes(502), "pax header .* damaged"),
        (b"\1" * 512, "no tar header at byte 1024, after 1 members"),
    ],
)
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_impossible_headers(tmp_path, data, message, ending):
    path = tmp_path / f"x{ending}"
    whole = GOOD + data + END
    path.write_bytes(gzip.compress(whole) if ending == ".tar.gz" else whole)
    with no_hang(), pytest.raises(ValueError, match=message) as error:
        open_images(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data, names, note",
    [
        (member("b.jpg", b"x", pax={"mtime": "nan"}), ["a.jpg", "b.jpg"], ""),
        (member("b.jpg", b"x", pax={"path": "a\0b.jpg"}), ["a.jpg"], r"outside .*: a\x00b.jpg"),
        (member("../b.jpg", b"x"), ["a.jpg"], "name outside of the archive: ../b.jpg"),
        (member("caf\udce9.jpg", b"x"), ["a.jpg", "caf\udce9.jpg"], ""),
        (member("a.jpg", b"new"), ["a.jpg"], "has 1 file more than once .a.jpg.: the last one"),
        (member("b.jpg", kind=b"6"), ["a.jpg"], "1 x named pipe: b.jpg"),
        (member("b.jpg", kind=b"3"), ["a.jpg"], "1 x device: b.jpg"),
        (member("b.jpg", kind=b"2", link="a.jpg"), ["a.jpg", "b.jpg"], ""),
        (member("c/b.jpg", kind=b"2", link="../a.jpg"), ["a.jpg", "c/b.jpg"], ""),
        (member("b.jpg", kind=b"1", link="./a.jpg"), ["a.jpg", "b.jpg"], ""),
        (member("b.jpg", kind=b"2", link="gone.jpg"), ["a.jpg"], "link to nothing in .*: b.jpg"),
        (member("b.jpg", kind=b"2", link="/etc/passwd"), ["a.jpg"], "link to nothing in .*: b.jpg"),
        (member("b.jpg", kind=b"2", link="../../a.jpg"), ["a.jpg", "b.jpg"], ""),
        (member("b.jpg", kind=b"2", link="b.jpg"), ["a.jpg"], "link to nothing in .*: b.jpg"),
        (member("b.jpg", kind=b"1", link="gone.jpg"), ["a.jpg"], "link to nothing: b.jpg"),
        (member("s.jpg", bytes(512), kind=b"S"), ["a.jpg"], "1 x sparse file: s.jpg"),
        (b"".join(member("g", b"6 a=b\n", kind=b"g") for _ in range(3000)), ["a.jpg"], ""),
        (b"".join(member("l", b"x.jpg", kind=b"L") for _ in range(3000)), ["a.jpg"], ""),
    ],
)
def test_odd_members(tmp_path, data, names, note):
    (tmp_path / "x.tar").write_bytes(GOOD + data + END)
    with no_hang():
        sources = open_images(tmp_path / "x.tar")
    assert list(sources.train.names) == names
    assert all(sources.train.read(index) for index in range(len(names)))
    assert re.search(note.replace("\\", "\\\\"), "\n".join(sources.notes))


def test_many_links_are_followed_quickly(tmp_path):
    chain = (member(f"{i}.jpg", kind=b"2", link=f"{i + 1}.jpg") for i in range(20_000))
    (tmp_path / "x.tar").write_bytes(GOOD + b"".join(chain) + END)
    with no_hang():
        sources = open_images(tmp_path / "x.tar")
    assert len(sources.train) == 1
    assert any("20000 x link to nothing in the archive" in note for note in sources.notes)


def test_long_digits_and_keys_of_pax_take_no_quadratic_time(tmp_path):
    digits = b"1" * 200_000
    records = b"5 aaa" * 40_000 + b"="
    for data in (digits, records, b"9 a=" + digits):
        (tmp_path / "x.tar").write_bytes(member("x", data, kind=b"x") * 20 + GOOD + END)
        assert not opens_or_fails(tmp_path / "x.tar")


def test_compressed_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_archive, "available_bytes", lambda: 16 << 20)
    for ending, compress in ((".tar.gz", gzip.compress), (".tar.bz2", bz2.compress)):
        path = tmp_path / f"x{ending}"
        path.write_bytes(compress(bytes(64 << 20)))
        with no_hang(), pytest.raises(ValueError, match="unpacks to more than 0.00781 GiB"):
            open_images(path)


def test_large_member_is_not_read(tmp_path):
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(GOOD + header("b.jpg", binary(50 << 30)))
        file.truncate((50 << 30) + 4096)  # takes no place on the disk
    sources = open_images(tmp_path / "x.tar")
    assert sources.train.read(0) == b"abc"
    with pytest.raises(OSError, match="has 53687091200 bytes; allowed: at most 1073741824"):
        sources.train.read(1)


def test_other_containers_say_how_to_unpack(tmp_path):
    for name, start in (
        ("x.7z", b"7z\xbc\xaf\x27\x1c"),
        ("x.rar", b"Rar!\x1a\x07"),
        ("x.tar.zst", b""),
    ):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(ValueError, match=f"is a {name[2:]} archive.*\n.* {tmp_path}/{name}"):
            open_images(tmp_path / name)
    (tmp_path / "my data.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    with pytest.raises(ValueError, match="7z archive.*unpack it") as error:
        open_images(tmp_path / "my data.7z")
    command = str(error.value).splitlines()[-1].strip()
    assert command == f"7z x '{tmp_path}/my data.7z' -o'{tmp_path}/my data'"


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
def test_tar_of_tars_says_how_to_unpack(tmp_path):
    inner = member("1.jpg", b"x") + END
    outer = member("n01440764.tar", inner) + member("sub/n01443537.tar", inner) + END
    (tmp_path / "all of it.tar").write_bytes(outer)
    with pytest.raises(ValueError, match="2 of them are archives: unpack the outer one") as error:
        open_images(tmp_path / "all of it.tar")
    text, *commands = str(error.value).splitlines()
    subprocess.run(["sh", "-ec", "\n".join(commands)], check=True)
    sources = open_images(tmp_path / "all of it")
    assert sources.train.class_names == ("n01440764", "n01443537")
    assert f"--config.data.path='{tmp_path}/all of it'" in text
    (tmp_path / "deeper.tar").write_bytes(member("n01.tgz", inner) + END)
    with pytest.raises(ValueError, match="1 of them are archives: unpack both levels into a fol"):
        open_images(tmp_path / "deeper.tar")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar.gz").write_bytes(inner)
    with pytest.raises(ValueError, match="1 of them are archives: set --config.data.path to one"):
        open_images(tmp_path / "shards")


def test_path_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    (tmp_path / "y.tar").symlink_to("/dev/zero")
    for name, what in (("x.tar", "a named pipe"), ("y.tar", "a device")):
        with (
            no_hang(),
            pytest.raises(ValueError, match=f"it is {what}; allowed: a folder, or .tar"),
        ):
            open_images(tmp_path / name)
