"""The roll call of real sockets on localhost, one thread a process."""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moco_jax.parallel.roll_call import Missing, meet


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_missing_processes_are_named():
    port = free_port()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))
        calls = [pool.submit(meet, f"localhost:{port}", 4, process, 2.0) for process in (0, 2)]
        for call in calls:
            with pytest.raises(Missing, match=r"2 of 4 processes did not join within 2 s: 1, 3\."):
                call.result()
    with pytest.raises(Missing, match=f"could not reach process 0 at localhost:{port} within 1 s"):
        meet(f"localhost:{port}", 2, 1, 1.0)


def test_a_foreign_caller_does_not_disturb_the_roll_call():
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(meet, f"localhost:{port}", 3, process, 20.0) for process in (1, 2, 0)]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port)) as s:
                s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
        assert [call.result() for call in calls] == [None] * 3


def test_a_process_that_is_started_twice_raises():
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(meet, f"localhost:{port}", 3, process, 3.0) for process in (0, 1, 1)]
        said = {str(call.exception()) for call in calls}
    assert any("process 1 has already joined" in message for message in said)
    assert any("did not join within 3 s: 2." in message for message in said)


def test_another_program_on_the_port_is_not_taken_for_process_0():
    with socket.create_server(("localhost", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        call = pool.submit(meet, f"localhost:{port}", 2, 1, 0.5)
        server.settimeout(1)
        with contextlib.suppress(TimeoutError):  # it does not call again
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"\x00\x00\x18\x04")  # as JAX's coordinator does
        with pytest.raises(Missing, match="another program answers there"):
            call.result()


def test_different_numbers_of_processes_raise():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 2.0)
        with pytest.raises(Missing, match="one of 2 processes, this one as one of 3; --processes"):
            meet(f"localhost:{port}", 3, 2, 2.0)
        with pytest.raises(Missing, match="did not join within 2 s: 1"):
            first.result()
