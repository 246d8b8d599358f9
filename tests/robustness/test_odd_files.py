"""Named pipes, devices, sockets, broken links and huge files among images are never read."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import devices_flags
from tests.data.sources.stores import images, open_images, write_folder


def test_odd_entries_are_named_and_never_opened(tmp_path):
    write_folder(tmp_path, images("a b"))
    os.mkfifo(tmp_path / "a/pipe.jpg")
    (tmp_path / "a/zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "b/gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "b/self.jpg").symlink_to("self.jpg")
    (tmp_path / "b/link.jpg").symlink_to("0.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "b/socket.jpg"))
    (tmp_path / "a/folder.jpg").mkdir()
    sources = open_images(tmp_path)
    assert len(sources.train) == 7
    assert sources.notes[1:] == (
        "left out: 2 x broken link: b/gone.jpg, b/self.jpg",
        "left out: 1 x device: a/zero.jpg",
        "left out: 1 x named pipe: a/pipe.jpg",
        "left out: 1 x socket: b/socket.jpg",
    )


def test_files_that_changed_into_pipes_or_became_huge_are_unreadable(tmp_path):
    write_folder(tmp_path, images("a b", 1))
    train = open_images(tmp_path).train
    (tmp_path / "a/0.jpg").unlink()
    os.mkfifo(tmp_path / "a/0.jpg")
    os.truncate(tmp_path / "b/0.jpg", 60_000_000_000)  # takes no place on the disk
    with pytest.raises(OSError, match="a/0.jpg: it is a named pipe"):
        train.read(0)
    with pytest.raises(OSError, match="b/0.jpg: it has 60000000000 bytes; allowed: at most"):
        train.read(1)


PIPE_SCRIPT = """
import signal, sys
from moco_jax.data.sources.opening import open_sources
asked = []  # an exception in the handler would end a read that blocks, or be lost in a callback
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
train = open_sources(source="images", path=sys.argv[1], held_out=0.0, seed=0).train
print("opened", len(train), flush=True)
import os
os.unlink(train.names[0])
os.mkfifo(train.names[0])
while not asked:
    try:
        train.read(0)
    except OSError:
        pass
sys.exit(75)
"""


def test_a_named_pipe_does_not_make_a_process_deaf(tmp_path, repository):
    write_folder(tmp_path, images("a b", 1))
    command = [sys.executable, "-c", PIPE_SCRIPT, str(tmp_path)]
    environment = os.environ | {"XLA_FLAGS": devices_flags(1), "PYTHONPATH": str(repository)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "opened 2\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=300) == 75
        finally:
            process.kill()
