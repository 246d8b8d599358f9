"""Work of process 0 that takes long, while the other processes wait for it."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from moco_jax.parallel import cluster

_POLL = 0.5  # seconds between two signs of life


def on_first(work: Callable[[], Any], *, alone: bool = False) -> Any:
    """Returns on all processes what `work` returns on process 0, in a thread of its own.

    The other processes get a sign of life every moment, so that no time limit of theirs passes, and
    Ctrl-C ends the wait, though the work may be inside a library.

    Args:
      work: its result must be JSON.
      alone: this process does not inform the others; they may have ended.

    Raises:
      Exception: what `work` raises; a ValueError on the other processes.
    """
    thread, outcome = _started(work)

    def done() -> bool:
        thread.join(_POLL)
        return not thread.is_alive()

    def result() -> Any:
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    if alone:
        while not done():
            pass
        return result()
    while not cluster.on_first(done):
        pass
    return cluster.on_first(result)


def _started(work: Callable[[], Any]) -> tuple[threading.Thread, dict[str, Any]]:
    """Starts the work on process 0; returns its thread and where its result will be."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    if cluster.is_first():
        thread.start()
    return thread, outcome
