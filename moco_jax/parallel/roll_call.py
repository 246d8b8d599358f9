"""Waits until all processes of a run are there, and names those that are missing.

JAX's own start-up aborts after its timeout without naming the missing processes. So the processes
meet here first, on the port that JAX's coordinator takes afterwards: process 0 listens, the others
call it, and when all have called, process 0 answers them.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Container

_RETRY_PAUSE = 0.2  # seconds between two attempts to reach process 0
_GO = "go"
_PREFIX = "moco_jax: "  # begins every answer, because another program may listen on the port
_MAX_MESSAGE = 4096  # bytes


class Missing(ValueError):
    """Not all processes joined in time."""


def meet(address: str, processes: int, process: int, timeout: float) -> None:
    """Returns when all processes have called.

    Args:
      address: host:port of process 0.
      process: number of this process, from 0.
      timeout: seconds.

    Raises:
      Missing: after the timeout; names the missing processes.
    """
    host, _, port = address.rpartition(":")
    if process == 0:
        _listen(int(port), processes, timeout)
    else:
        _call(host.strip("[]"), int(port), processes, process, timeout)


def _listen(port: int, processes: int, timeout: float) -> None:
    """Waits, as process 0, for the calls of processes 1 to N - 1."""
    deadline = time.monotonic() + timeout
    present: dict[int, socket.socket] = {}
    unidentified: list[socket.socket] = []
    try:
        with _server(port) as server:
            while len(present) < processes - 1 and (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([server, *unidentified], [], [], left)
                for connection in ready:
                    if connection is server:
                        unidentified.append(server.accept()[0])
                        continue
                    unidentified.remove(connection)
                    number = _new_number(connection, processes, present)
                    if number is None:
                        connection.close()
                    else:
                        present[number] = connection
        missing = [number for number in range(1, processes) if number not in present]
        message = _missing_message(missing, processes, timeout) if missing else _GO
        for connection in present.values():
            _send(connection, message)
        if missing:
            raise Missing(message)
    finally:
        for connection in [*present.values(), *unidentified]:
            connection.close()


def _server(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # IPv6 is compiled in but switched off
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
                )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise Missing(
            f"process 0 cannot listen on port {port} ({error}); give another port with "
            "--coordinator=HOST:PORT"
        ) from error


def _new_number(connection: socket.socket, processes: int, present: Container[int]) -> int | None:
    """Returns the process number that a caller sends; None if no new process of this run calls."""
    try:
        connection.settimeout(5)
        number, total = json.loads(connection.recv(_MAX_MESSAGE))
    except (OSError, ValueError, TypeError):
        return None  # for example a port scanner
    if total != processes:
        problem = (
            f"process 0 was started as one of {processes} processes, this one as one of {total}; "
            "--processes must be the same on all"
        )
    elif number not in range(1, processes):
        return None
    elif number in present:
        problem = (
            f"process {number} has already joined; every process must be started once, with a "
            "--process number of its own"
        )
    else:
        return number
    _send(connection, problem)
    return None


def _missing_message(numbers: list[int], processes: int, timeout: float) -> str:
    listed = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
    return (
        f"{len(numbers)} of {processes} processes did not join within {timeout:.0f} s: "
        f"{listed}. Check that they were started and can reach the port of process 0, or raise "
        "--join_timeout"
    )


def _send(connection: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):  # the caller is gone; JAX's own start-up reports that
        connection.sendall((_PREFIX + message).encode())


def _call(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Calls process 0 and waits for its answer."""
    deadline = time.monotonic() + timeout
    # Process 0 may have started later; then its deadline ends the wait, not this one.
    grace, error = 5.0, "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=_RETRY_PAUSE * 10) as connection:
                connection.settimeout(deadline - time.monotonic() + timeout + grace)
                connection.sendall(json.dumps([process, processes]).encode())
                answer = connection.recv(_MAX_MESSAGE).decode(errors="replace")
            # For example JAX's coordinator of a run that still holds the port.
            error = "another program answers there" if answer else "the connection was closed"
        except OSError as reason:
            answer, error = "", reason
        if answer == _PREFIX + _GO:
            return
        if answer.startswith(_PREFIX):
            raise Missing(answer.removeprefix(_PREFIX))
        time.sleep(_RETRY_PAUSE)
    raise Missing(
        f"process {process} of {processes} could not reach process 0 at {host}:{port} within "
        f"{timeout:.0f} s ({error}). Check that process 0 was started and --coordinator is its "
        "address, or raise --join_timeout"
    )
