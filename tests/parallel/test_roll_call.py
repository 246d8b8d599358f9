"""The roll call of real sockets on localhost, one thread a process."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moco_jax.parallel import handshake
from moco_jax.parallel.addresses import WrongFlags
from moco_jax.parallel.roll_call import Missing, meet
from tests.ports import free_port


def connected(port: int) -> socket.socket:
    """Returns a connection to process 0, once it listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("localhost", port), timeout=60)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


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
        call = pool.submit(meet, f"localhost:{port}", 2, 1, 3.0)
        server.settimeout(0.1)
        while not call.done():
            with contextlib.suppress(TimeoutError):  # it pauses between two calls
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"\x00\x00\x18\x04")  # as JAX's coordinator does
        with pytest.raises(Missing, match="another program answers there"):
            call.result()


def test_different_numbers_of_processes_raise():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 5.0)
        with pytest.raises(Missing, match="one of 2 processes, this one as one of 3; --processes"):
            meet(f"localhost:{port}", 3, 2, 5.0)
        with pytest.raises(Missing, match="did not join within 5 s: 1"):
            first.result()


def test_a_token_of_another_run_is_refused(monkeypatch):
    port = free_port()
    monkeypatch.setenv("MOCO_JAX_TOKEN", "a" * 16)
    token, both_read = handshake.token, threading.Barrier(3, timeout=60)

    def read_and_wait():
        found = token()
        both_read.wait()
        return found

    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(handshake, "token", read_and_wait)
            first = pool.submit(meet, f"localhost:{port}", 3, 0, 10.0)
            call_with_token = pool.submit(meet, f"localhost:{port}", 3, 1, 10.0)
            both_read.wait()
        for other in ("b" * 16, None):
            if other is None:
                monkeypatch.delenv("MOCO_JAX_TOKEN")
            else:
                monkeypatch.setenv("MOCO_JAX_TOKEN", other)
            with pytest.raises(Missing, match="the token differs: set the same MOCO_JAX_TOKEN"):
                meet(f"localhost:{port}", 3, 2, 10.0)
        with pytest.raises(Missing, match=r"did not join within 10 s: 2\.") as missing:
            first.result()
        assert "2 rejected callers have another MOCO_JAX_TOKEN (from 127.0.0.1)" in str(
            missing.value
        )
        with pytest.raises(Missing, match=r"did not join within 10 s: 2\."):
            call_with_token.result()


@pytest.mark.parametrize("token", ["", "short", "a" * 15])
def test_a_short_token_is_refused_and_not_printed(monkeypatch, token):
    monkeypatch.setenv("MOCO_JAX_TOKEN", token)
    with pytest.raises(WrongFlags, match=f"has {len(token)} characters .* at least 16") as error:
        meet(f"localhost:{free_port()}", 2, 0, 1.0)
    assert not token or f" {token} " not in str(error.value)


def test_process_0_listens_at_its_bind_address_only():
    port = free_port()
    bound = f"127.0.0.2:{port}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"127.0.0.1:{port}", 2, 0, 20.0, bound)
        with pytest.raises(Missing, match="could not reach process 0 at 127.0.0.1"):
            meet(f"127.0.0.1:{port}", 2, 1, 0.5)
        meet(bound, 2, 1, 20.0)
        first.result()


def test_a_bind_address_of_another_machine_is_named():
    with pytest.raises(Missing, match=r"listen at 192\.0\.2\.1:7 .*--coordinator_bind_address=H"):
        meet("localhost:7", 2, 0, 1.0, "192.0.2.1:7")


def test_the_limit_of_open_files_is_raised_or_named():
    def listen(limits: str, processes: int) -> str:
        code = (
            "import resource; from moco_jax.parallel.roll_call import meet\n"
            f"try: meet('localhost:{free_port()}', {processes}, 0, 0.1)\n"
            "except ValueError as error: print(error)\n"
            "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
        )
        command = ["bash", "-c", f'{limits}; exec "$0" -c "$1"', sys.executable, code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    said = listen("ulimit -Sn 500; ulimit -Hn 4000", 1000)
    assert "999 of 1000 processes did not join" in said and "(2152, 4000)" in said
    said = listen("ulimit -Sn 500; ulimit -Hn 1000", 1000)
    assert "needs 2152 open files, and this machine allows 1000" in said
    assert "`ulimit -n 2152`" in said


@pytest.mark.parametrize("number", [0, 3, 9999999])
def test_a_number_out_of_range_is_named(number):
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 3, 0, 3.0)
        with connected(port) as caller:
            challenge = caller.recv(200).split()
            assert challenge[:2] == [b"moco_jax", b"1"] and len(challenge[2]) == 32
            caller.sendall(b"moco_jax 1 %d 3 %s -\n" % (number, b"0" * 32))
            said = caller.recv(4096)
        assert said == b"moco_jax 1 error --process=%d must be from 1 to 2\n" % number
        with pytest.raises(Missing, match="1 rejected callers have a wrong --process"):
            first.result()
