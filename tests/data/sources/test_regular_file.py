"""Only regular files of a bounded size are read."""

import errno
import gc
import os
import socket
import threading

import pytest

from moco_jax.data.sources.regular_file import MAX_BYTES, read_file


def test_contents_of_files_and_of_links(tmp_path):
    for name, data in [("empty", b""), ("small", b"abc"), ("large", bytes(9 << 20))]:
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"link_{name}").symlink_to(name)
        assert read_file(tmp_path / name) == read_file(str(tmp_path / f"link_{name}")) == data


def named_pipe(path):
    os.mkfifo(path)


def sparse_file(path):
    with open(path, "wb") as file:
        file.truncate(60_000_000_000)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    "make, message",
    [
        (named_pipe, "it is a named pipe; allowed: a regular file"),
        (os.mkdir, "it is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (unix_socket, "it is a socket"),
        (sparse_file, f"it has 60000000000 bytes; allowed: at most {MAX_BYTES}"),
        (lambda path: path.symlink_to("nothing"), "No such file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: None, "No such file"),
    ],
)
def test_other_files_are_errors(tmp_path, make, message):
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(OSError, match=message) as error:
        read_file(path)
    assert str(path) in str(error.value)


def test_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert read_file(tmp_path / "x", limit=3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes; allowed: at most 2"):
        read_file(tmp_path / "x", limit=2)


def test_file_that_becomes_a_named_pipe_does_not_block(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    stat, before = os.stat, os.stat(tmp_path / "x")
    monkeypatch.setattr(os, "stat", lambda path: before if "pipe" in str(path) else stat(path))
    failed = []

    def read():
        try:
            read_file(tmp_path / "pipe")
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert failed and "it is a named pipe" in str(failed[0])
    assert failed[0].errno in (None, errno.ENXIO)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_file_whose_size_is_unknown():
    assert b"Name:" in read_file("/proc/self/status")
    with pytest.raises(OSError, match="it grows; allowed: at most 10"):
        read_file("/proc/self/status", limit=10)


def test_descriptors_are_closed(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    gc.collect()  # files of earlier tests may close meanwhile
    before = len(os.listdir("/dev/fd"))
    read_file(tmp_path / "x")
    with pytest.raises(OSError):
        read_file(tmp_path / "x", limit=1)
    assert len(os.listdir("/dev/fd")) == before
