"""Waits until all processes of a run are there, and names those that are missing.

JAX's own start-up aborts after its timeout without naming the missing processes. So the processes
meet here first, on the port that JAX's coordinator takes afterwards: process 0 listens, the others
call it, and when all have called, process 0 answers them. `handshake.py` has the messages.

Anyone may connect to the port. So process 0 never waits for one caller, keeps a bounded number of
callers that have not said who they are, each for a bounded time, and reads a bounded number of
bytes from each.
"""

import contextlib
import dataclasses
import errno
import random
import resource
import selectors
import socket
import time
from collections.abc import Iterator

from moco_jax.parallel import addresses, handshake
from moco_jax.parallel.addresses import WrongFlags

_PATIENCE = 10.0  # seconds in which a caller must say who it is
_UNKNOWN = 1024  # connections that have not said who they are; then the oldest is dropped
_FEWEST_UNKNOWN = 32
_OTHER_FILES = 128  # that process 0 has open besides its connections
_BACKLOG = 4096  # the kernel's own limit, net.core.somaxconn
_PAUSES = (0.1, 2.0)  # seconds between two attempts to reach process 0: the first, the longest
_CALLS_A_SECOND = 5000  # first calls, of all processes together
_LISTED = 5  # addresses of rejected callers in a message
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Missing(ValueError):
    """Not all processes joined in time."""


def meet(
    address: str, processes: int, process: int, timeout: float, bind: str | None = None
) -> None:
    """Returns when all processes have called.

    If MOCO_JAX_TOKEN is set, process 0 and its callers prove to each other that they know it.

    Args:
      address: host:port of process 0.
      process: number of this process, from 0.
      timeout: seconds.
      bind: host:port at which process 0 listens; None: the port of `address` on all interfaces.

    Raises:
      Missing: after the timeout; names the missing processes.
      WrongFlags: if the token is too short, or process 0 may not open enough connections.
    """
    host, port = addresses.split(address, "--coordinator")
    secret = handshake.token()
    if process == 0:
        _listen(bind, port, processes, timeout, secret)
    else:
        _call(host, port, processes, process, timeout, secret)


@dataclasses.dataclass(eq=False)
class _Caller:
    """A connection to process 0."""

    connection: socket.socket
    address: str
    nonce: bytes
    deadline: float  # to say who it is
    data: bytes = b""
    call: handshake.Call | None = None  # of a process that has joined


@dataclasses.dataclass
class _Roll:
    """The connections of process 0."""

    selector: selectors.BaseSelector
    server: socket.socket
    processes: int
    secret: bytes
    most_unknown: int
    unknown: dict[_Caller, None] = dataclasses.field(default_factory=dict)  # the oldest first
    present: dict[int, _Caller] = dataclasses.field(default_factory=dict)  # by process number
    # The number and some addresses of the callers that were turned away, by the reason.
    rejected: dict[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)


def _listen(bind: str | None, port: int, processes: int, timeout: float, secret: bytes) -> None:
    """Waits, as process 0, for the calls of processes 1 to N - 1."""
    deadline = time.monotonic() + timeout
    most_unknown = _make_room(processes)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(bind, port))
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        roll = _Roll(selector, server, processes, secret, most_unknown)
        stack.callback(_close_all, roll)
        while len(roll.present) < processes - 1 and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(min(left, 1.0)):
                if key.fileobj is server:
                    _accept(roll)
                elif key.data.connection.fileno() != -1:  # not dropped since select
                    _read(roll, key.data)
            _drop_late(roll)
        missing = [number for number in range(1, processes) if number not in roll.present]
        if missing:
            message = _missing_message(missing, roll, timeout)
            for caller in roll.present.values():
                _send(caller, handshake.error(message))
            raise Missing(message)
        for caller in roll.present.values():
            assert caller.call
            _send(caller, handshake.go(secret, caller.nonce, caller.call))


def _close_all(roll: _Roll) -> None:
    for caller in [*roll.present.values(), *roll.unknown]:
        caller.connection.close()


def _make_room(processes: int) -> int:
    """Raises the limit of open files if needed; returns how many callers may be unidentified."""
    wanted = processes + _UNKNOWN + _OTHER_FILES
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _UNKNOWN
    if limit < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            limit = raised
    room = min(_UNKNOWN, limit - processes - _OTHER_FILES)
    if room < _FEWEST_UNKNOWN:
        raise WrongFlags(
            f"process 0 of {processes} processes needs {wanted} open files, and this machine "
            f"allows {limit}: raise the limit there with `ulimit -n {wanted}` before the start"
        )
    return room


def _server(bind: str | None, port: int) -> socket.socket:
    try:
        server = _bound(bind, port)
    except (OSError, UnicodeError) as error:
        raise Missing(
            f"process 0 cannot listen at {bind or f'port {port}'} ({error}); give another address "
            "with --coordinator=HOST:PORT or --coordinator_bind_address=HOST:PORT"
        ) from error
    server.setblocking(False)
    return server


def _bound(bind: str | None, port: int) -> socket.socket:
    if bind is not None:
        host, port = addresses.split(bind, "--coordinator_bind_address")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 is compiled in but switched off
            return socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
    return socket.create_server(("", port), backlog=_BACKLOG)


def _accept(roll: _Roll) -> None:
    """Accepts some of the new connections, and sends each a challenge."""
    for _ in range(100):  # then those that have answered take their turn
        try:
            connection, address = roll.server.accept()
        except BlockingIOError:
            return
        except OSError as error:  # for example, the caller has closed the connection already
            if error.errno in _NO_FILES and not _drop_oldest(roll):
                time.sleep(0.05)
            return
        host = str(address[0]).removeprefix("::ffff:")
        deadline = time.monotonic() + _PATIENCE
        caller = _Caller(connection, host, handshake.nonce(), deadline)
        roll.unknown[caller] = None
        try:
            connection.setblocking(False)
            _notice_a_lost_machine(connection)
            roll.selector.register(connection, selectors.EVENT_READ, caller)
        except OSError:
            _drop(roll, caller)
            continue
        _send(caller, handshake.challenge(caller.nonce))
        if len(roll.unknown) > roll.most_unknown:
            _drop_oldest(roll)


def _drop_oldest(roll: _Roll) -> bool:
    """Drops the connection that has been silent the longest; returns whether there was one."""
    oldest = next(iter(roll.unknown), None)
    if oldest:
        _reject(roll, oldest, "did not say who they are")
    return oldest is not None


def _drop_late(roll: _Roll) -> None:
    """Drops the callers that have not said in time who they are."""
    now = time.monotonic()
    while roll.unknown and next(iter(roll.unknown)).deadline < now:
        _drop_oldest(roll)


def _read(roll: _Roll, caller: _Caller) -> None:
    """Reads what has come from a caller; never waits."""
    try:
        data = caller.connection.recv(handshake.CALL_LIMIT + 1)
    except (BlockingIOError, InterruptedError):
        return
    except OSError:
        data = b""
    if caller.call:  # it has joined and has nothing more to say: it ended, or is no process
        _drop(roll, caller)
        return
    caller.data += data
    if b"\n" in data or len(caller.data) > handshake.CALL_LIMIT:
        _identify(roll, caller)
    elif not data:
        _reject(roll, caller, "did not say who they are")


def _identify(roll: _Roll, caller: _Caller) -> None:
    """Takes a caller in, if it is a process of this run."""
    call = handshake.read_call(caller.data)
    if call is None:  # for example a port scanner
        _reject(roll, caller, "are other programs")
    elif not handshake.is_proven(roll.secret, caller.nonce, call):
        _reject(roll, caller, "have another MOCO_JAX_TOKEN", handshake.TOKEN_DIFFERS)
    elif call.processes != roll.processes:
        problem = (
            f"process 0 was started as one of {roll.processes} processes, this one as one of "
            f"{call.processes}; --processes must be the same on all"
        )
        _reject(roll, caller, "have another --processes", problem)
    elif call.process not in range(1, roll.processes):
        problem = f"--process={call.process} must be from 1 to {roll.processes - 1}"
        _reject(roll, caller, "have a wrong --process", problem)
    elif call.process in roll.present:
        problem = (
            f"process {call.process} has already joined; every process must be started once, with "
            "a --process number of its own"
        )
        _reject(roll, caller, "have the --process of another", problem)
    else:
        del roll.unknown[caller]
        caller.call = call
        roll.present[call.process] = caller


def _reject(roll: _Roll, caller: _Caller, reason: str, answer: str = "") -> None:
    """Notes a caller that can't join, answers it and drops it."""
    count, known = roll.rejected.get(reason, (0, []))
    if caller.address not in known and len(known) <= _LISTED:
        known.append(caller.address)
    roll.rejected[reason] = count + 1, known
    if answer:
        _send(caller, handshake.error(answer))
    _drop(roll, caller)


def _drop(roll: _Roll, caller: _Caller) -> None:
    roll.unknown.pop(caller, None)
    if caller.call:
        roll.present.pop(caller.call.process, None)
    with contextlib.suppress(KeyError, ValueError):
        roll.selector.unregister(caller.connection)
    caller.connection.close()


def _missing_message(numbers: list[int], roll: _Roll, timeout: float) -> str:
    where = addresses.joined(*roll.server.getsockname()[:2])
    parts = [
        f"{len(numbers)} of {roll.processes} processes did not join within {timeout:.0f} s: "
        f"{_listed(map(str, numbers[:21]), 20)}. Check that they were started and can reach "
        f"{where} of process 0, or raise --join_timeout"
    ]
    for reason, (count, known) in roll.rejected.items():
        shown = _listed(map(addresses.shown, known), _LISTED)
        parts.append(f"{count} rejected callers {reason} (from {shown})")
    return ". ".join(parts)


def _listed(texts: Iterator[str], most: int) -> str:
    found = list(texts)
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")


def _send(caller: _Caller, message: bytes) -> None:
    """Sends a message, which fits into the buffer of a new connection; never waits."""
    with contextlib.suppress(OSError):  # the caller is gone; JAX's own start-up reports that
        caller.connection.send(message)


def _notice_a_lost_machine(connection: socket.socket) -> None:
    """Closes the connection half a minute after the other machine has gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _call(
    host: str, port: int, processes: int, process: int, timeout: float, secret: bytes
) -> None:
    """Calls process 0 and waits for its answer."""
    deadline = time.monotonic() + timeout
    # The processes of a large run don't all call at the same moment, and draw different pauses.
    draw = random.Random(process)
    pause, longest = _PAUSES
    time.sleep(min(timeout / 2, draw.random() * processes / _CALLS_A_SECOND))
    error: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = _ask(host, port, processes, process, left, timeout, secret)
            if answer == "":
                return
            # For example JAX's coordinator of a run that still holds the port.
            error = "another program answers there"
        except OSError as reason:
            answer, error = None, reason
        if answer:
            raise Missing(answer)
        left = max(0.0, deadline - time.monotonic())
        time.sleep(min(left, pause * (0.5 + draw.random())))
        pause = min(2 * pause, longest)
    raise Missing(
        f"process {process} of {processes} could not reach process 0 at "
        f"{addresses.joined(host, port)} within {timeout:.0f} s ({error}). Check that process 0 "
        "was started and --coordinator is its address, or raise --join_timeout"
    )


def _ask(
    host: str, port: int, processes: int, process: int, left: float, timeout: float, secret: bytes
) -> str | None:
    """Returns process 0's answer: "" to begin, an error, or None if another program answers."""
    until = time.monotonic() + min(left, _PATIENCE)
    with socket.create_connection((host, port), timeout=min(left, _PATIENCE)) as connection:
        _notice_a_lost_machine(connection)
        theirs = handshake.read_challenge(_line(connection, handshake.CALL_LIMIT, until))
        if theirs is None:
            return None
        own = handshake.nonce()
        connection.sendall(handshake.call(secret, theirs, own, process, processes))
        # Process 0 may have started later; then its deadline ends the wait, not this one.
        until = time.monotonic() + left + timeout + 5.0
        answer = _line(connection, handshake.ANSWER_LIMIT, until)
        return handshake.read_answer(secret, theirs, own, process, processes, answer)


def _line(connection: socket.socket, limit: int, until: float) -> bytes:
    """Returns the bytes up to the first line break or the limit, or all until the end.

    Raises:
      TimeoutError: if they don't come until then.
      ConnectionError: if the connection ends without a byte.
    """
    line = b""
    while len(line) <= limit and not line.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        data = connection.recv(limit + 1 - len(line))
        if not data:
            break
        line += data
    if not line:
        raise ConnectionError("the connection was closed")
    return line
