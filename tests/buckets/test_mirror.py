"""A folder and its copy in a bucket: what is copied, in which order, and what is not removed."""

import errno
import os
import pathlib
import shutil

import pytest

from moco_jax.buckets import fetching, objects
from moco_jax.buckets import mirror as mirror_lib
from moco_jax.buckets.client import Entry, Kind
from moco_jax.buckets.mirror import Mirror, NotAllowed, Rules
from tests.buckets.memory import contents

URL = "s3://b/runs/x"


def group(name: str) -> str:
    first, _, rest = name.partition("/")
    return first if first.startswith("group") and rest else ""


RULES = Rules(skipped=lambda name: "tmp" in name, group=group, last="LAST", mark="MARK", every=10.0)


@pytest.fixture
def local(tmp_path):
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


@pytest.fixture
def mirror(local, folder):
    return Mirror(local, URL, RULES, lambda: True)


@pytest.fixture
def clock(monkeypatch):
    """The time of the mirror."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(mirror_lib, "time", made)
    return made


def write(folder: pathlib.Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def there(bucket) -> dict[str, str]:
    return contents(bucket / "runs/x")


def changes(folder) -> list[str]:
    """Returns the writes and removals since the last call."""
    found = [
        ("-" if name == "remove" else "") + argument.removeprefix("runs/x/")
        for name, argument in folder.requests
        if name in ("write", "remove")
    ]
    folder.requests.clear()
    return found


def test_new_and_changed_files_are_copied(local, bucket, folder, mirror):
    write(local, a="1", tmp="2", sub__b="3")
    assert mirror.scan(final=True) and there(bucket) == {"a": "1", "sub/b": "3"}
    assert sorted(changes(folder)) == ["a", "sub/b"]  # threads write both
    assert mirror.scan(final=True) and changes(folder) == []
    write(local, a="11")
    assert mirror.scan(final=True) and changes(folder) == ["a"]
    (local / "a").unlink()
    assert mirror.scan(final=True) and there(bucket) == {"a": "11", "sub/b": "3"}


@pytest.mark.parametrize("left", [(), ("a",), ("a", "group1/LAST")])
def test_a_folder_that_somebody_empties_takes_nothing_from_the_bucket(local, bucket, mirror, left):
    write(local, MARK="1", a="1", group1__LAST="l", group1__x="x")
    assert mirror.scan(final=True)
    before = there(bucket)
    shutil.rmtree(local)
    write(local.parent, **{f"local/{name}": "begun anew" for name in left})
    with pytest.raises(OSError, match="local"):
        mirror.scan(final=True)
    assert there(bucket) == before


def test_a_folder_that_can_not_be_read_takes_nothing_from_the_bucket(
    local, bucket, mirror, monkeypatch
):
    write(local, a="1", group1__LAST="l", group2__LAST="l")
    assert mirror.scan(final=True)
    before, scandir = there(bucket), os.scandir

    def refuse(path):
        if str(path).endswith("group1"):
            raise OSError(errno.ESTALE, "stale handle", str(path))
        return scandir(path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="stale handle"):
        patch.setattr(os, "scandir", refuse)
        mirror.scan(final=True)
    assert there(bucket) == before


def test_the_last_whole_group_stays_in_the_bucket(local, bucket, mirror):
    write(local, group1__LAST="l", group1__x="x")
    assert mirror.scan(final=True)
    shutil.rmtree(local / "group1")
    write(local, group2__x="half")
    mirror.scan(final=True)
    assert there(bucket).keys() == {"group1/LAST", "group1/x"}


def test_files_that_were_copied_before_one_failed_are_noted(local, bucket, folder, mirror):
    write(local, a="1", b="2", c="3")
    put, (first, *others) = Mirror._put, list(mirror._files())

    def refuse(self, name, size):
        if name == first:
            raise OSError("refused")
        return put(self, name, size)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="refused"):
        patch.setattr(Mirror, "_put", refuse)
        mirror.scan(final=True)
    assert sorted(changes(folder)) == sorted(others)
    assert mirror.scan(final=True) and changes(folder) == [first]


def test_a_growing_file_is_not_copied_all_the_time(local, bucket, folder, mirror, clock):
    write(local, a="1")
    assert mirror.scan()
    for second in range(1, 25):
        clock.now = float(second)
        write(local, a="1" * (second + 1))
        mirror.scan()
    assert changes(folder) == ["a"] * 3


def test_a_group_is_copied_after_other_files_and_its_last_file_after_its_others(
    local, folder, mirror, clock
):
    write(local, a="1")
    assert mirror.scan() and changes(folder) == ["a"]
    write(local, a="22", group1__LAST="l", group1__x="x", group1__sub__y="y")
    assert mirror.scan()
    first, *middle, last = changes(folder)
    assert (first, sorted(middle), last) == ("a", ["group1/sub/y", "group1/x"], "group1/LAST")


def test_a_line_that_comes_while_files_are_listed_is_copied_before_the_group(
    local, bucket, folder, mirror, clock, monkeypatch
):
    write(local, a="1")
    assert mirror.scan() and changes(folder) == ["a"]
    write(local, group1__LAST="l")
    listed, calls = Mirror._files, []

    def late(self):
        found = listed(self)
        if not calls:
            write(local, a="11")
        calls.append(found)
        return found

    monkeypatch.setattr(Mirror, "_files", late)
    mirror.scan()
    assert changes(folder) == ["a", "group1/LAST"]


def test_an_incomplete_group_is_not_copied(local, bucket, mirror):
    write(local, group1__x="x")
    assert not mirror.scan(final=True) and not there(bucket)


def test_a_group_is_removed_after_the_next_one_is_there(local, bucket, folder, mirror):
    write(local, group1__LAST="l", group1__x="x")
    assert mirror.scan()
    changes(folder)
    for name in ("LAST", "x"):
        (local / "group1" / name).unlink()
    write(local, group2__LAST="l", group2__x="x")
    assert mirror.scan()
    assert changes(folder) == ["group2/x", "group2/LAST", "-group1/LAST", "-group1/x"]


def test_a_group_that_is_being_removed_is_neither_copied_nor_removed(local, folder, mirror):
    write(local, group1__LAST="l", group1__x="x")
    assert mirror.scan()
    changes(folder)
    (local / "group1/x").unlink()
    mirror.scan()
    assert changes(folder) == []


def test_a_group_that_is_replaced_is_incomplete_meanwhile(local, folder, mirror):
    write(local, group1__LAST="l", group1__x="x", group1__y="y")
    assert mirror.scan()
    changes(folder)
    (local / "group1/y").unlink()
    write(local, group1__LAST="new", group1__x="new")
    assert mirror.scan()
    expected = ["-group1/LAST", "-group1/y", "group1/x", "group1/LAST"]
    assert changes(folder) == expected


def test_the_last_file_waits_if_another_one_changes_meanwhile(local, bucket, mirror, monkeypatch):
    write(local, group1__LAST="l", group1__x="x")
    put = Mirror._put

    def change(self, name, size):
        if name == "group1/x":
            write(local, group1__x="changed")
        return put(self, name, size)

    monkeypatch.setattr(Mirror, "_put", change)
    assert not mirror.scan() and there(bucket).keys() == {"group1/x"}
    monkeypatch.undo()


def test_nothing_is_removed_while_something_can_not_be_copied(local, bucket, folder, mirror):
    write(local, group1__LAST="l")
    assert mirror.scan()
    os.rename(local / "group1", local / "group2")
    folder.problem = Kind.PASSING
    with pytest.raises(objects.BucketError):
        mirror.scan()
    assert there(bucket).keys() == {"group1/LAST"}
    folder.problem = None
    assert mirror.scan() and there(bucket).keys() == {"group2/LAST"}


def test_what_another_program_wrote_stays(local, bucket, mirror):
    write(bucket / "runs/x", foreign="1", group9__x="half")
    write(local, a="1")
    mirror.list_bucket()
    assert mirror.scan(final=True)
    assert there(bucket).keys() == {"a", "foreign", "group9/x"}


def test_a_fetched_folder_is_equal(local, bucket, folder, mirror):
    write(bucket / "runs/x", a="1", tmp="2", group1__LAST="l", group1__x="x", group2__x="half")
    mirror.fetch(mirror.complete(mirror.list_bucket()))
    files = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert files == {"a", "group1/LAST", "group1/x"}
    changes(folder)
    assert mirror.scan(final=True) and changes(folder) == []


def test_a_later_mirror_copies_only_what_changed(local, bucket, folder, mirror):
    write(local, a="1", b="2", c="3")
    assert mirror.scan(final=True)
    write(local, a="11")
    write(bucket / "runs/x", b="other")
    changes(folder)
    later = Mirror(local, URL, RULES, lambda: True)
    later.list_bucket()
    assert later.resume(mirror.record()) == {"a", "b", "c"}
    assert later.scan(final=True) and sorted(changes(folder)) == ["a", "b"]


def test_a_damaged_record_copies_all_again(local, bucket, folder, mirror):
    write(local, a="1")
    assert mirror.scan(final=True)
    later = Mirror(local, URL, RULES, lambda: True)
    assert later.resume(b"") == set()
    assert later.scan(final=True) and changes(folder) == ["a", "a"]


def test_copied_files_that_the_folder_lost_are_fetched_again(local, bucket, mirror):
    write(local, group1__LAST="l", group1__x="x", group2__LAST="l")
    write(bucket / "runs/x", foreign="1")
    assert mirror.scan(final=True)
    (local / "group1/x").unlink()
    later = Mirror(local, URL, RULES, lambda: True)
    found = later.list_bucket()
    later.resume(mirror.record())
    later.fetch(later.absent(found))
    assert (local / "group1/x").read_text() == "x" and not (local / "foreign").exists()
    assert later.scan(final=True) and later.absent(later.list_bucket()) == {}


def test_nothing_is_written_that_is_not_allowed(local, bucket, folder):
    write(local, a="1")
    with pytest.raises(NotAllowed):
        Mirror(local, URL, RULES, lambda: False).scan(final=True)
    assert not there(bucket)


def test_a_key_that_leaves_the_folder_is_refused(folder, mirror, monkeypatch):
    from moco_jax.buckets.client import Entry

    bad = [Entry("runs/x/../../y", 1, "1")]
    monkeypatch.setattr(folder, "_names", lambda folder: bad)
    objects.bucket.cache_clear()
    with pytest.raises(objects.BucketError, match="whose name is no path"):
        mirror.list_bucket()


def test_markers_of_folders_are_no_files():
    keys = {"x": 0, "x/a": 0, "x/a/4": 0, "x/a/4/f": 1, "x/empty": 0, "x/a-b": 0}
    entries = [Entry(key, size, "1") for key, size in keys.items()]
    assert fetching.relative("s3://b/x", entries).keys() == {"a/4/f", "empty", "a-b"}


def test_marks_are_copied_before_other_files(local, mirror, folder):
    write(local, **{f"{letter}": letter for letter in "abcdefgh"}, sub__MARK="m")
    assert mirror.scan(final=True)
    assert changes(folder)[0] == "sub/MARK"
