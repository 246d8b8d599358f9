"""Bounded asynchronous dispatch: the devices compute while the host handles earlier results."""

import collections
from collections.abc import Iterable, Iterator
from typing import TypeVar

IN_FLIGHT = 2  # results that are held back: the devices stay busy, and few results take memory

T = TypeVar("T")


def pipelined(dispatched: Iterable[T], in_flight: int = IN_FLIGHT) -> Iterator[T]:
    """Yields the items of `dispatched` in order, each after `in_flight` later ones are dispatched.

    A result that is yielded is not kept here. To free its device memory before the next dispatch,
    copy it to the host with `map(jax.device_get, pipelined(...))`; a loop variable would keep it.

    Args:
      dispatched: computes an item when asked for one, and returns without waiting for the devices.
      in_flight: items that are held back; 0 yields each item as soon as it is dispatched.
    """
    held: collections.deque[T] = collections.deque()
    for item in dispatched:
        held.append(item)
        del item  # or this frame keeps the newest result
        if len(held) > in_flight:
            yield held.popleft()
    while held:
        yield held.popleft()
