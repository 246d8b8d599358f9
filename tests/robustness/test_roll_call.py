"""The roll call under attack, and with thousands of processes: process 0 always finishes.

Strangers may connect to the port of process 0 and send anything. Each test runs them beside the
processes of the run.
"""

import asyncio
import contextlib
import random
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moco_jax.parallel import handshake, roll_call
from tests.parallel.test_roll_call import connected
from tests.ports import free_port

TOKEN = "0123456789abcdef"
PATIENCE = 300  # seconds: many times what a slow machine takes, since only a hang may fail


@pytest.fixture
def first(monkeypatch):
    """Returns a function that starts process 0; gives its port and its future result."""
    monkeypatch.setenv("MOCO_JAX_TOKEN", TOKEN)
    with ThreadPoolExecutor(1) as pool:

        def first(processes, timeout=PATIENCE):
            port = free_port()
            future = pool.submit(roll_call.meet, f"localhost:{port}", processes, 0, timeout)
            connected(port).close()
            return port, future

        yield first


def join(port, processes):
    """Lets all other processes of the run call; returns when all have been answered."""
    with ThreadPoolExecutor(processes) as pool:
        calls = [
            pool.submit(roll_call.meet, f"localhost:{port}", processes, i, PATIENCE)
            for i in range(1, processes)
        ]
        assert [call.result() for call in calls] == [None] * (processes - 1)


def send(port, message: bytes) -> None:
    """Sends bytes as a stranger, and waits until process 0 has read what it wants of them."""
    with contextlib.suppress(OSError), connected(port) as stranger:
        stranger.recv(200)  # else closing would discard what is on its way
        stranger.sendall(message)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass


NASTY = {
    "nested brackets": b"[" * 4_000_000,
    "no line break": b"moco_jax 1 1 3 " + b"0" * 100_000,
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(193),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "nothing": b"",
    "line breaks": b"\n" * 1000,
    "zeros": bytes(10_000),
    "surrogates": b"moco_jax 1 \xed\xa0\x80\n",
    "huge number": b"moco_jax 1 " + b"9" * 150 + b" 3 " + b"0" * 32 + b" -\n",
    "negative": b"moco_jax 1 -1 3 " + b"0" * 32 + b" -\n",
    "other digits": "moco_jax 1 ١ 3 ".encode() + b"0" * 32 + b" -\n",
    "no proof": b"moco_jax 1 1 3 " + b"0" * 32 + b" -\n",
    "wrong proof": b"moco_jax 1 1 3 " + b"0" * 32 + b" " + b"0" * 64 + b"\n",
    "two lines": (b"moco_jax 1 1 3 " + b"0" * 32 + b" -\n") * 2,
}


@pytest.mark.parametrize("message", NASTY.values(), ids=NASTY.keys())
def test_bytes_of_strangers(first, message):
    port, future = first(3)
    for _ in range(5):
        send(port, message)
    join(port, 3)
    future.result()


def test_random_and_mutated_messages(first):
    """2,000 of them, half of which begin as a call does."""
    port, future = first(3)
    draw = random.Random(0)
    whole = handshake.call(TOKEN.encode(), b"0" * 32, b"1" * 32, 1, 3)
    for i in range(2000):
        if i % 2:
            message = draw.randbytes(draw.randrange(400))
        else:
            message = bytearray(whole)
            for _ in range(draw.randrange(1, 4)):
                message[draw.randrange(len(message))] = draw.randrange(256)
            message = message[: draw.randrange(len(message) + 1)]
        send(port, bytes(message))
    assert not future.done()
    join(port, 3)
    future.result()


def test_silent_connections(first):
    """2,000 that never say anything: the oldest are dropped, and the processes get through."""
    port, future = first(20)
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(connected(port))
        join(port, 20)
        future.result()


def test_a_caller_of_one_byte_a_second_delays_nobody(first, monkeypatch):
    monkeypatch.setattr(roll_call, "_PATIENCE", 3.0)
    port, future = first(3)
    ended = threading.Event()

    def drip():
        with contextlib.suppress(OSError), connected(port) as stranger:
            while True:
                stranger.sendall(b"m")
                time.sleep(0.2)
        ended.set()

    dripping = threading.Thread(target=drip)
    dripping.start()
    assert ended.wait(PATIENCE)  # it is dropped, though it never falls silent
    dripping.join()
    join(port, 3)
    future.result()


def test_a_call_in_many_parts_is_put_together(first):
    port, future = first(2)
    with connected(port) as caller:
        nonce = handshake.read_challenge(caller.recv(200))
        assert nonce
        for byte in handshake.call(TOKEN.encode(), nonce, b"1" * 32, 1, 2):
            caller.sendall(bytes([byte]))
            time.sleep(0.002)
        answer = caller.recv(4096)
    assert handshake.read_answer(TOKEN.encode(), nonce, b"1" * 32, 1, 2, answer) == ""
    future.result()


def test_a_replayed_proof_takes_no_place(first):
    port, future = first(3)
    with connected(port) as caller:
        nonce = handshake.read_challenge(caller.recv(200))
        assert nonce
        seen = handshake.call(TOKEN.encode(), nonce, b"1" * 32, 1, 3)
        caller.sendall(seen)
        with connected(port) as stranger:  # who listened on the network
            assert stranger.recv(200)
            stranger.sendall(seen)
            assert b"error the token differs" in stranger.recv(4096)
    join(port, 3)  # process 1 has left and calls again
    future.result()


def test_a_stranger_who_answers_as_process_0_is_not_believed(monkeypatch):
    """He has the port, but not the token."""
    monkeypatch.setenv("MOCO_JAX_TOKEN", TOKEN)
    with socket.create_server(("localhost", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        call = pool.submit(roll_call.meet, f"localhost:{port}", 2, 1, 3.0)
        connection, _ = server.accept()
        with connection:
            connection.sendall(handshake.challenge(b"0" * 32))
            assert connection.recv(200).startswith(b"moco_jax 1 1 2 ")
            connection.sendall(b"moco_jax 1 go " + b"0" * 64 + b"\n")
        with pytest.raises(roll_call.Missing, match="could not reach process 0"):
            call.result()


@pytest.mark.parametrize("answer", [b"[" * 10_000, b"\xff\n", b"moco_jax 1 error \x1b[2J\n", b""])
def test_foreign_answers_are_not_shown(monkeypatch, answer):
    monkeypatch.delenv("MOCO_JAX_TOKEN", raising=False)
    with socket.create_server(("localhost", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        call = pool.submit(roll_call.meet, f"localhost:{port}", 2, 1, 2.0)
        connection, _ = server.accept()
        with connection:
            connection.sendall(handshake.challenge(b"0" * 32))
            assert connection.recv(200)
            with contextlib.suppress(OSError):
                connection.sendall(answer)
        with pytest.raises(roll_call.Missing) as missing:
            call.result()
    assert str(missing.value).isprintable() and "could not reach" in str(missing.value)


def test_a_duplicate_with_the_token_takes_no_place(first):
    port, future = first(3)
    with connected(port) as one:
        nonce = handshake.read_challenge(one.recv(200))
        assert nonce
        one.sendall(handshake.call(TOKEN.encode(), nonce, b"1" * 32, 1, 3))
        with pytest.raises(roll_call.Missing, match="process 1 has already joined"):
            roll_call.meet(f"localhost:{port}", 3, 1, PATIENCE)
        roll_call.meet(f"localhost:{port}", 3, 2, PATIENCE)
        answer = one.recv(4096)
    assert handshake.read_answer(TOKEN.encode(), nonce, b"1" * 32, 1, 3, answer) == ""
    future.result()


def test_rejected_callers_are_named_in_a_bounded_message(first):
    port, future = first(3, timeout=15)
    for message in NASTY.values():
        send(port, message)
    with pytest.raises(roll_call.Missing, match=r"did not join within 15 s: 1, 2\.") as missing:
        future.result()
    said = str(missing.value)
    assert "rejected callers are other programs (from 127.0.0.1)" in said
    assert "2 rejected callers have another MOCO_JAX_TOKEN" in said
    assert said.isprintable() and len(said) < 1000


async def simulated(port: int, process: int, processes: int) -> None:
    """Calls as a process does; a coroutine, because 5,000 threads take minutes to start."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            nonce, own = handshake.read_challenge(await reader.readline()), handshake.nonce()
            assert nonce
            writer.write(handshake.call(TOKEN.encode(), nonce, own, process, processes))
            answer = await reader.readline()
            writer.close()
        except OSError:
            answer = b""
        if answer:
            said = handshake.read_answer(TOKEN.encode(), nonce, own, process, processes, answer)
            assert said == "", said
            return
        await asyncio.sleep(0.1)  # process 0 does not listen yet, or had too many callers


async def all_call(port: int, processes: int) -> None:
    await asyncio.gather(*[simulated(port, i, processes) for i in range(1, processes)])


def test_5000_processes_among_silent_strangers(monkeypatch):
    processes, strangers = 5000, 500
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * (processes + strangers) + 1500
    if hard < needed:
        pytest.skip(f"needs {needed} open files; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    monkeypatch.setenv("MOCO_JAX_TOKEN", TOKEN)
    port, begun = free_port(), time.monotonic()
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        future = pool.submit(roll_call.meet, f"localhost:{port}", processes, 0, PATIENCE)
        for _ in range(strangers):
            stack.enter_context(connected(port))
        pool.submit(asyncio.run, all_call(port, processes)).result()
        future.result()
    print(f"{processes} processes joined in {time.monotonic() - begun:.1f} s")
