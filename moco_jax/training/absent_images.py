"""A run whose bucket does not answer: it waits until a signal comes, and saves its state."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax

from moco_jax.buckets import objects
from moco_jax.training.interruption import Interruption


@contextlib.contextmanager
def saving(
    asked: Interruption, save: Callable[[], None], stopped: Callable[[signal.Signals], Exception]
) -> Iterator[None]:
    """Within the block, saves the state if the images can't be read any more.

    Args:
      asked: ends the wait for a bucket.
      save: saves the state; not called if there are several processes, which would have to agree.
      stopped: returns the error to raise after a signal.

    Raises:
      objects.BucketError: without a signal, if the bucket can't be read.
    """
    try:
        with objects.waiting_while(lambda: asked.by is None):
            yield
    except objects.BucketError:
        if jax.process_count() == 1:
            save()
        if asked.by:
            raise stopped(asked.by) from None
        raise
