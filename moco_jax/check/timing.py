"""Medians of repeated work on devices, and threads that compile."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

_TURNS = 5


def median_seconds(work: Callable[[], Any], times: int = 1) -> float:
    """Returns the seconds that `work` takes, whose result is on devices.

    Args:
      work: called once before anything is measured.
      times: calls of a turn, of which several may be under way; the median is that of five turns.
    """
    jax.block_until_ready(work())

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(times):
            result = work()
        jax.block_until_ready(result)
        return (time.perf_counter() - begun) / times

    return statistics.median(turn() for _ in range(_TURNS))


@contextlib.contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yields threads; the end of the block does not wait: nothing stops a thread that compiles."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
