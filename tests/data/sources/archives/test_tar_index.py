"""The members of an archive agree with those that Python's tarfile and GNU tar see."""

import io
import shutil
import subprocess
import tarfile
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_jax.data.sources.archives.tar_index import DamagedTar, members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


class Drawn(NamedTuple):
    """A member of an archive."""

    name: str
    kind: bytes
    time: float
    size: int
    headers: dict[str, str]  # of pax


_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1)
_HEADERS = st.fixed_dictionaries({"comment": st.text("=\n", max_size=9), "SCHILY.xattr.a": _TEXT})
_DRAWN = st.builds(
    Drawn,
    st.lists(_TEXT, min_size=1, max_size=4).map("/".join).filter(lambda x: len(x.encode()) < 90),
    st.sampled_from((b"0", b"0", b"0", b"1", b"2", b"5", b"6", b"7")),
    st.sampled_from((0, 1.5, 2**33)),
    st.sampled_from((0, 1, 511, 512, 513, 3000)),
    st.just({}) | _HEADERS,
)


def write_tar(drawn, form):
    """Returns an archive of these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for own in drawn:
            info = tarfile.TarInfo(own.name)
            info.type = own.kind
            info.linkname = "some/file" if info.type in b"12" else ""
            info.mtime = own.time if form != tarfile.USTAR_FORMAT else 7
            info.size = own.size if info.type in b"07" else 0
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = own.headers
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return file


@pytest.mark.parametrize("form", FORMATS)
@given(drawn=st.lists(_DRAWN, min_size=1, max_size=20))
@settings(max_examples=10 * settings().max_examples)
def test_members_agree_with_tarfile(form, drawn):
    file, warnings = write_tar(drawn, form), []
    found = list(members(file, warnings.append))
    assert not warnings
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        wanted = archive.getmembers()
    assert len(found) == len(wanted) == len(drawn)
    for own, other in zip(found, wanted, strict=True):
        assert own.name.rstrip("/") == other.name
        assert own.size == (other.size if other.isreg() else 0)
        assert own.offset == other.offset_data
        assert own.target == other.linkname
        kinds = (other.isreg(), other.islnk(), other.issym(), other.isdir(), other.isfifo())
        names = ("file", "hard link", "link", "folder", "named pipe")
        assert own.kind == dict(zip(kinds, names, strict=True))[True]


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar(tmp_path, form):
    names = ["a/1.jpg", "b/" + "x" * 80 + ".jpg"]
    names += [] if form == "v7" else ["c" * 60 + "/" + "d" * 90 + ".jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a/2.jpg").hardlink_to(tmp_path / "a/1.jpg")
    (tmp_path / "a/3.jpg").symlink_to("1.jpg")
    with open(tmp_path / "a/hole.jpg", "wb") as sparse:
        sparse.truncate(1 << 22)
        sparse.seek(1 << 21)
        sparse.write(b"x")
    command = ["tar", "-cf", "x.tar", f"--format={form}", "a", "b"]
    command += ["--sparse"] if form != "v7" and form != "ustar" else []
    command += [] if form == "v7" else ["c" * 60]
    subprocess.run(command, cwd=tmp_path, check=True)
    with open(tmp_path / "x.tar", "rb") as file:
        found = {member.name: member for member in members(file, print)}
        for name in names:
            file.seek(found[name].offset)
            assert file.read(found[name].size) == name.encode()
    kinds = {found["a/1.jpg"].kind, found["a/2.jpg"].kind, found["a/3.jpg"].kind}
    assert kinds == {"file", "hard link", "link"} and found["a/3.jpg"].target == "1.jpg"
    sparse = "file" if form in ("v7", "ustar") else "sparse file"
    assert found["a/hole.jpg"].kind == sparse


def listed(data: bytes) -> tuple[int, list[str]]:
    """Returns the number of members of an archive, and the warnings."""
    warnings: list[str] = []
    return len(list(members(io.BytesIO(data), warnings.append))), warnings


def test_end_of_archive():
    drawn = [Drawn(f"a/{i}.jpg", b"0", 0, 3000, {}) for i in range(20)]
    file = write_tar(drawn, tarfile.PAX_FORMAT)
    whole = file.getvalue()
    last = list(members(file, print))[-1]
    end = last.offset + -(-last.size // 512) * 512
    assert listed(whole) == listed(whole + bytes(3 << 20)) == (20, [])
    cut = "the archive has no end mark; it may be cut off after 20 members"
    assert listed(whole[:end]) == (20, [cut])
    count, (joined,) = listed(whole + whole)
    assert count == 20 and f"what follows at byte {len(whole)} is not read" in joined
    count, (rubbish,) = listed(whole[:end] + bytes(512) + b"rubbish")
    assert count == 20 and f"ends at byte {end}, and what follows at byte {end + 512}" in rubbish
    with pytest.raises(DamagedTar, match=f"no tar header at byte {end}, after 20 members"):
        listed(whole[:end] + b"rubbish")
    with pytest.raises(DamagedTar, match="so it is not a tar file"):
        listed(b"rubbish")
    with pytest.raises(DamagedTar, match="the file is empty"):
        listed(b"")
