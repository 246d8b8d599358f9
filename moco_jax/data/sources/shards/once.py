"""Lets one process of a machine do what several would do at once, such as listing a shard."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

# Seconds that a process waits for another; then it does the work too. A process that dies ends
# its lock.
PATIENCE = 300.0
_PAUSE = 0.1


@contextlib.contextmanager
def alone(place: str) -> Iterator[None]:
    """Waits while another process or thread is within a block of the same file.

    The work may be done afterwards: look before doing it. Without a folder that can be written,
    nobody waits.
    """
    descriptor = _locked(f"{place}.lock")
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # who waits for this file finds the work done
                os.unlink(f"{place}.lock")
            os.close(descriptor)


def _locked(path: str) -> int | None:
    """Returns the descriptor of a locked file; None if the lock is not to be had."""
    descriptor, end = None, time.monotonic() + PATIENCE
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
