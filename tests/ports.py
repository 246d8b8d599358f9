"""Ports at which processes of tests listen."""

import contextlib
import itertools
import os
import socket

# Below 32,768, where Linux begins to give ports to the own ends of connections.
_FIRST, _WORKERS, _OF_EACH = 10_240, 32, 700
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_numbers = itertools.count(os.getpid())  # several runs of the tests begin at different ports


def free_port() -> int:
    """Returns a port at which nobody listens, another one at each call.

    Until a test listens there, no connection and no other worker of pytest-xdist takes it.
    """
    for number in itertools.islice(_numbers, _OF_EACH):
        port = _FIRST + _WORKER * _OF_EACH + number % _OF_EACH
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("", port))
            return port
    raise OSError("no port is free")
