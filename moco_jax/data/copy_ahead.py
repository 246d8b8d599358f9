"""Copying batches to the devices before they are needed."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from moco_jax.mesh import Layout

_AHEAD = 2  # batches on their way while one is used


def copied_ahead(batches: Iterator[Any], layout: Layout) -> Iterator[Any]:
    """Yields host batches as device arrays, the next ones already being copied."""
    waiting = deque()
    for batch in batches:
        waiting.append(layout.put_batch(batch))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting
