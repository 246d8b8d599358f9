"""An object of a bucket as a lock: one process at a time holds it, and renews it.

A bucket does not know whether the holder of a lock is alive. So the holder writes the object again
and again, and who finds an object that nobody writes any more takes it over.
"""

import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from moco_jax.buckets import objects
from moco_jax.buckets.client import Entry, Kind, Over
from moco_jax.terminal import logs

RENEWED_EVERY = 15.0  # seconds
ABANDONED_AFTER = 60.0  # seconds without a renewal
_LOOK_EVERY = 5.0
_LARGEST = 1 << 16  # bytes of a lock


class Held(Exception):
    """Raised if another process holds the lock; the message says which."""


class Lock:
    """A lock that this process holds; safe to use from threads.

    Attributes:
      lost: whether another process has taken it over.
    """

    def __init__(self, url: str):
        """Asks nothing yet; `url` is that of the object."""
        self.url, self.lost, self._held = url, False, False
        self._token = uuid.uuid4().hex
        self._entry: Entry | None = None  # None also if the server knows no conditions
        self._renewed = 0.0
        self._mutex = threading.Lock()

    def acquire(self) -> None:
        """Takes the lock; waits for a while if it is there, to see whether it is renewed.

        Raises:
          Held: if another process holds it.
          BucketError: if the bucket can't be read or written.
        """
        try:
            while not self._write(self._free()):
                pass  # another process was faster
        except objects.BucketError as error:
            if error.kind != Kind.UNCONDITIONAL:
                raise
            logs.warning("no lock for %s (%s): start one run at a time there", self.url, error)
            objects.write(self.url, self._content())
        self._held = True

    def _free(self) -> Over | Entry:
        """Returns what may be replaced, as soon as nobody holds the lock.

        It looks for a lock first: some servers write whatever the condition is.
        """
        if not (found := self._found()):
            return Over.NOTHING
        entry, holder = found
        if not _is_dead(holder):
            self._watch(entry, holder)
        return entry

    def renew(self, after: float = RENEWED_EVERY) -> bool:
        """Writes the lock again if it is older than `after` seconds; returns whether it is held.

        Raises:
          BucketError: if the bucket can't be written.
        """
        with self._mutex:
            if self.lost or not self._held or self._entry is None:
                return not self.lost
            if _now() - self._renewed >= after:
                self.lost = not self._write(self._entry)
            return not self.lost

    def release(self) -> None:
        """Removes the lock if it is held; raises as `renew`."""
        if not self._held or not self.renew(after=0.0):
            return
        with self._mutex:  # no thread renews it any more
            self._held = False
            objects.remove(self.url, wanted=_never)

    def _write(self, over: Over | Entry) -> bool:
        """Writes the lock; returns False if another process has done so."""
        begun = _now()
        wanted = _never if self._held else None  # a holder tries again itself
        try:
            self._entry = objects.write(self.url, self._content(), over, wanted)
        except (objects.Changed, FileNotFoundError):
            found = self._found(wanted)
            if not found:  # somebody removed it
                # Another process may have taken it over, and have ended.
                outdated = self._held and begun - self._renewed >= ABANDONED_AFTER
                return over != Over.NOTHING and not outdated and self._write(Over.NOTHING)
            if found[1].get("token") != self._token:
                return False
            self._entry = found[0]  # our own write, whose answer was lost
        self._renewed = begun
        return True

    def _found(
        self, wanted: Callable[[], bool] | None = None
    ) -> tuple[Entry, dict[str, Any]] | None:
        """Returns the lock in the bucket and its holder, None without one."""
        try:
            entry = objects.stat(self.url, wanted, to_write=True)
            holder = json.loads(objects.read_whole(self.url, _LARGEST, wanted)[1])
        except FileNotFoundError:
            return None
        except ValueError as error:
            if isinstance(error, objects.BucketError):
                raise
            holder = {}
        return entry, holder if isinstance(holder, dict) else {}

    def _watch(self, entry: Entry, holder: dict[str, Any]) -> None:
        """Returns when the lock is not renewed for a while; raises `Held` if it is."""
        folder = self.url.rpartition("/")[0]
        logs.warning(
            "%s has the lock of %s: waiting up to %.0f s to see whether it still runs",
            folder,
            _described(holder),
            ABANDONED_AFTER,
        )
        end = _now() + ABANDONED_AFTER
        while _now() < end:
            time.sleep(_LOOK_EVERY)
            try:
                if objects.stat(self.url).version != entry.version:
                    raise Held(_described(holder))
            except FileNotFoundError:
                return  # it is released; the next write finds this

    def _content(self) -> bytes:
        about = _process() | {"token": self._token, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        return json.dumps(about | {"renewed": time.time()}).encode()


def _process() -> dict[str, Any]:
    """Returns what identifies this process on its machine, and the machine."""
    return {"host": socket.gethostname(), "pid": os.getpid(), **_machine()}


def _machine() -> dict[str, str]:
    """Returns the boot of this machine and the numbering of its processes, {} if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Returns whether the holder ran on this machine and has ended."""
    here = {"host": socket.gethostname(), **_machine()}
    pid = holder.get("pid")
    if "boot" not in here or any(holder.get(key) != x for key, x in here.items()):
        return False
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown machine')}"


def _now() -> float:
    """Returns a clock that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _never() -> bool:
    return False
