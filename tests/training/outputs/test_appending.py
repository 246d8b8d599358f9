"""Files that a run appends to, when the disk is full for a while."""

import errno
import io
import logging
import os

import pytest

from moco_jax.training.outputs import appending
from moco_jax.training.outputs.appending import Appended, append_line, write_whole


class Disk:
    """Replaces `open`: files of a disk that takes `space` more bytes."""

    def __init__(self, space: int, when="write"):
        self.space, self.when = space, when

    def open(self, path, mode, buffering=-1):
        disk = self

        class File(io.FileIO):
            def write(self, data):
                if disk.when != "write":
                    return super().write(data)
                if not disk.space:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written = super().write(bytes(data[: disk.space]))
                disk.space -= written
                return written

            def close(self):
                failed = disk.when == "close" and not self.closed and not disk.space
                super().close()
                if failed:
                    raise OSError(errno.EDQUOT, "Disk quota exceeded")

        if self.when == "open" and not self.space:
            raise OSError(errno.EROFS, "Read-only file system")
        return File(path, mode.replace("b", ""))


@pytest.mark.parametrize("when", ["open", "write", "close"])
@pytest.mark.parametrize("stays_open", [False, True])
def test_records_wait_for_space_in_order_and_whole(tmp_path, monkeypatch, caplog, when, stays_open):
    path, disk = tmp_path / "folder" / "log", Disk(0, when)
    file = Appended(path, stays_open=stays_open)
    records = [b"record %d\n" % i for i in range(8)]
    file.write(records[0])
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(appending, "open", disk.open, raising=False)
        if stays_open:
            file._close_file()
        for record in records[1:5]:
            file.write(record)
            if when == "write":
                disk.space = 4  # half a record
        disk.space = 1000
        file.write(records[5])
    for record in records[6:]:
        file.write(record)
    file.close()
    assert path.read_bytes() == b"".join(records)
    if not (stays_open and when == "close"):  # closed once, at the end
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 2
        assert "log can't be written: [Errno" in messages[0] and "run goes on" in messages[0]
        assert "log is written again" in messages[1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], ""),
        (
            [20],
            "the log has step 20, which this start repeats: 1 line moved to",
        ),
        (
            [20, 20, 30, 40],
            "the log has steps 20 to 40, which this start repeats: 4 lines moved",
        ),
        ([20, 20, 30, 40], " 4 lines moved to metrics.dropped.jsonl\n"),
    ],
)
def test_moved_lines_are_explained(tmp_path, capsys, steps, message):
    lines = "".join(f'{{"step": {step}}}\n' for step in [5, 10, *steps])
    (tmp_path / "metrics.jsonl").write_text(lines)
    appending.resume(tmp_path / "metrics.jsonl", 10)
    printed = capsys.readouterr().out
    assert message in printed and bool(message) == bool(printed)


def test_records_that_are_lost_are_counted(tmp_path, monkeypatch, caplog):
    file = Appended(tmp_path / "log")
    monkeypatch.setattr(appending, "open", Disk(0).open, raising=False)
    file.write(b"a\n")
    file.write(b"b\n")
    with caplog.at_level(logging.WARNING):
        file.close()
    assert "2 records of" in caplog.text and "No space left" in caplog.text


def test_what_others_appended_stays(tmp_path):
    file = Appended(tmp_path / "log")
    file.write(b"1\n")
    with open(tmp_path / "log", "a") as other:
        other.write("theirs\n")
    file.write(b"2\n")
    assert (tmp_path / "log").read_text() == "1\ntheirs\n2\n"


@pytest.mark.parametrize("before", ["", "whole\n", "torn"])
def test_a_line_is_appended_after_a_torn_one(tmp_path, before):
    (tmp_path / "log").write_text(before)
    append_line(tmp_path / "log", "new")
    assert (tmp_path / "log").read_text() == before + "\n" * (before == "torn") + "new\n"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=r"config.json can't be written: No space left on device"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["config.json"]


def test_a_line_that_does_not_fit_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "starts.jsonl").write_text("old\n")
    monkeypatch.setattr(appending, "open", Disk(3).open, raising=False)
    with pytest.raises(ValueError, match=r"starts.jsonl can't be written: "):
        append_line(tmp_path / "starts.jsonl", "a long line")
    assert (tmp_path / "starts.jsonl").read_text() == "old\n"


def test_lines_may_hold_lists_of_numbers(tmp_path):
    path = tmp_path / "log.jsonl"
    good = ['{"step": 1, "a": [1, 2.5], "b": []}', '{"step": 2, "a": [3]}']
    bad = ['{"step": 1, "a": 1}', '{"step": 1, "a": ["1"]}', '{"step": 1, "a": [NaN]}']
    later = '{"step": 3, "a": [1]}'
    path.write_text("\n".join([good[0], *bad, good[1], later, ""]))
    kept = appending.resume(path, 2, lists=True)
    assert kept == [{"step": 1, "a": [1, 2.5], "b": []}, {"step": 2, "a": [3]}]
    assert path.read_text().splitlines() == good
    dropped = (tmp_path / "log.dropped.jsonl").read_text().splitlines()
    assert sorted(dropped) == sorted([*bad, later])
