"""Zip archives are read without unpacking; damaged and hostile ones end in one message."""

import random
import stat
import struct
import tracemalloc
import zipfile

import pytest

from moco_jax.data.sources.source import fingerprint
from tests.data.sources.stores import SPLIT_PATHS, contents, open_images, write_folder, write_tar
from tests.data.sources.watchdog import fuzz


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    """Writes an archive; `members` are names, whose contents are the names, or {name: bytes}."""
    data = members if isinstance(members, dict) else {name: name.encode() for name in members}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in data.items():
            archive.writestr(name, content)
    return path


def damaged(path, old, new, count=-1):
    path.write_bytes(path.read_bytes().replace(old, new, count))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_like_a_folder_and_a_tar(tmp_path, method):
    opened = [
        open_images(write_folder(tmp_path / "folder", SPLIT_PATHS)),
        open_images(write_tar(tmp_path / "x.tar", SPLIT_PATHS)),
        open_images(write_zip(tmp_path / "x.zip", SPLIT_PATHS, method)),
    ]
    for split in ("train", "test"):
        sources = [getattr(sources, split) for sources in opened]
        assert len({fingerprint(source) for source in sources}) == 1
        assert len({tuple(contents(source)) for source in sources}) == 1
        assert all(source.labels.tolist() == sources[0].labels.tolist() for source in sources)


def test_zip_is_known_by_its_content(tmp_path):
    write_zip(tmp_path / "x.tar", ["a/1.jpg", "b/2.jpg"])
    assert contents(open_images(tmp_path / "x.tar").train) == ["a/1.jpg", "b/2.jpg"]


def test_zip64(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        with archive.open("a.jpg", "w", force_zip64=True) as file:
            file.write(b"abc")
    assert open_images(tmp_path / "x.zip").train.read(0) == b"abc"


def test_names(tmp_path):
    path = write_zip(
        tmp_path / "x.zip",
        ["./b/1.jpg", "../out.jpg", "__MACOSX/b/._1.jpg", "/etc/2.jpg", "notes.txt"],
    )
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("XXXXX.jpg")
        archive.writestr(info, b"no utf-8 flag")
        windows = zipfile.ZipInfo("c\\3.jpg")
        windows.orig_filename, windows.create_system = "c\\3.jpg", 0
        archive.writestr(windows, b"by windows")
    damaged(path, b"XXXXX", "äöx".encode())
    sources = open_images(path)
    assert sources.train.names == ["b/1.jpg", "c/3.jpg", "etc/2.jpg", "äöx.jpg"]
    notes = "\n".join(sources.notes)
    assert "left out: 1 file: 1 .txt" in notes
    assert "1 x name outside of the archive: ../out.jpg" in notes


def test_links(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"one")
        for name, target in (("b/2.jpg", "../a/1.jpg"), ("b/3.jpg", "/etc/passwd")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    sources = open_images(tmp_path / "x.zip")
    assert contents(sources.train) == ["one", "one"]
    assert "1 x link to nothing in the archive: b/3.jpg" in "\n".join(sources.notes)


def test_members_that_can_not_be_read_are_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", ["a/1.jpg", "b/2.jpg"], zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"2 images compressed by bzip2 \(a/1.jpg\); allowed: st"):
        open_images(path)
    path = write_zip(tmp_path / "y.zip", ["a/1.jpg"], zipfile.ZIP_STORED)
    at = path.read_bytes().index(b"PK\1\2") + 8
    data = bytearray(path.read_bytes())
    data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"has 1 image encrypted \(a/1.jpg\).*without a password"):
        open_images(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4", "damaged or not a zip file"),
        (b"", "damaged or not a zip file"),
        (b"<html>" * 100, "damaged or not a zip file"),
        (b"PK\5\6" + bytes(18), "holds no images"),
    ],
)
def test_damaged_archives(tmp_path, data, message):
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ValueError, match=f"{tmp_path}/x.zip.* {message}|{message}.*found no files"):
        open_images(tmp_path / "x.zip")


def test_damaged_member_is_an_unreadable_image(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.jpg": b"A" * 50, "b.jpg": b"B" * 50}, 0)
    train = open_images(damaged(path, b"A" * 50, b"A" * 49 + b"C")).train
    assert train.read(1) == b"B" * 50
    with pytest.raises(OSError, match="checksum"):
        train.read(0)


def test_bomb_is_not_inflated(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.jpg": bytes(64 << 20), "b.jpg": b"abc" * 9})
    size = struct.pack("<I", 64 << 20)
    for claimed, message in ((100, "checksum"), ((1 << 30) + 1, "has 1073741825 bytes; allowed")):
        other = tmp_path / f"{claimed}.zip"
        other.write_bytes(path.read_bytes().replace(size, struct.pack("<I", claimed)))
        train = open_images(other).train
        assert train.read(1) == b"abc" * 9
        tracemalloc.start()
        with pytest.raises(OSError, match=message):
            train.read(0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def mutated_zip(seed):
    """Returns the bytes of a damaged archive."""
    rng = random.Random(seed)
    data = bytearray(GOOD)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80", b"PK\1\2"))
        elif how == 2:
            del data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
    return bytes(data)


@pytest.fixture(scope="module", autouse=True)
def good(tmp_path_factory):
    """Sets GOOD, the archive that `mutated_zip` damages."""
    global GOOD
    path = tmp_path_factory.mktemp("good") / "x.zip"
    write_zip(path, {"a/1.jpg": b"x" * 300, "b/2.jpg": b"yz" * 40, "b/3.txt": b"text"})
    with zipfile.ZipFile(path, "a") as archive:
        with archive.open("b/4.jpg", "w", force_zip64=True) as file:
            file.write(b"abc")
        info = zipfile.ZipInfo("b/5.jpg")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../a/1.jpg")
    GOOD = path.read_bytes()


@pytest.mark.parametrize(
    "seeds", [range(500), pytest.param(range(500, 20_000), marks=pytest.mark.slow)]
)
def test_mutated_zips(tmp_path, seeds):
    assert 0 < fuzz(tmp_path / "x.zip", mutated_zip, seeds) < len(seeds)
