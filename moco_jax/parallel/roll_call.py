"""Waits until every process of a cluster is there, and tells which are missing.

JAX's own start-up aborts when its time is up, without a word on who is missing. So the processes
first meet here, on the very port that JAX's coordinator then takes: process 0 listens, the others
call, and when all have called process 0 sends them on.
"""

import contextlib
import json
import select
import socket
import time

_PAUSE = 0.2  # seconds between two tries to reach process 0
_GO = "go"
_OURS = "moco_jax: "  # begins every answer: something else may listen there
_LONGEST = 4096  # bytes of a message


class Missing(ValueError):
    """Not all processes came in time."""


def meet(address: str, processes: int, process: int, timeout: float) -> None:
    """Returns when all processes have called.

    Args:
      address: host:port of process 0.
      processes: number of processes.
      process: the number of this one.
      timeout: seconds.

    Raises:
      Missing: after the timeout, with the numbers of those that are missing.
    """
    host, _, port = address.rpartition(":")
    if processes == 1:
        return
    if process == 0:
        _listen(int(port), processes, timeout)
    else:
        _call(host.strip("[]"), int(port), processes, process, timeout)


def _listen(port: int, processes: int, timeout: float) -> None:
    """Waits for the calls of processes 1 to N - 1, as process 0."""
    deadline = time.monotonic() + timeout
    present: dict[int, socket.socket] = {}
    strangers: list[socket.socket] = []
    try:
        with _server(port) as server:
            while len(present) < processes - 1:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                ready, _, _ = select.select([server, *strangers], [], [], left)
                for connection in ready:
                    if connection is server:
                        strangers.append(server.accept()[0])
                        continue
                    strangers.remove(connection)
                    number = _number(connection, processes)
                    if number in present:
                        _send(
                            connection, f"process {number} has called already; is it running twice?"
                        )
                    if number is None or number in present:
                        connection.close()  # a port scanner, say
                    else:
                        present[number] = connection
        missing = [number for number in range(1, processes) if number not in present]
        message = _missing(missing, processes, timeout) if missing else _GO
        for connection in present.values():
            _send(connection, message)
        if missing:
            raise Missing(message)
    finally:
        for connection in [*present.values(), *strangers]:
            connection.close()


def _server(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # where IPv6 is compiled in and switched off
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
                )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise Missing(f"process 0 can't listen on port {port}: {error}") from error


def _number(connection: socket.socket, processes: int) -> int | None:
    """Returns the number that a caller gives, None if it is not one of us."""
    try:
        connection.settimeout(5)
        number, of = json.loads(connection.recv(_LONGEST))
    except (OSError, ValueError, TypeError):
        return None
    if of != processes:
        _send(connection, f"process 0 was started as one of {processes} processes, not of {of}")
        return None
    return number if number in range(1, processes) else None


def _missing(numbers: list[int], processes: int, timeout: float) -> str:
    shown = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
    return (
        f"{len(numbers)} of {processes} processes did not join within {timeout:.0f} s: "
        f"{shown}. Is the program running there, and may it reach process 0's port?"
    )


def _send(connection: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile; JAX's own start-up will tell
        connection.sendall((_OURS + message).encode())


def _call(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Calls process 0 and waits for its word."""
    deadline = time.monotonic() + timeout
    # Process 0 may have started later: then its deadline, not ours, ends the wait.
    grace, error = 5.0, "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=_PAUSE * 10) as connection:
                connection.settimeout(deadline - time.monotonic() + timeout + grace)
                connection.sendall(json.dumps([process, processes]).encode())
                answer = connection.recv(_LONGEST).decode(errors="replace")
        except OSError as reason:
            error = reason
            time.sleep(_PAUSE)
            continue
        if answer == _OURS + _GO:
            return
        if answer.startswith(_OURS):
            raise Missing(answer.removeprefix(_OURS))
        # Such as JAX's coordinator of a run that is still going on there.
        error = "something else answers there" if answer else "it ended the call"
        time.sleep(_PAUSE)
    raise Missing(
        f"process {process} of {processes} could not reach process 0 at {host}:{port} within "
        f"{timeout:.0f} s ({error})"
    )
