"""Selects the images of each step: a pure function of the seed and the step."""

import dataclasses
import functools
import threading
from typing import Protocol

import numpy as np


class Plan(Protocol):
    """A sequence of image indices i32[B], one array per step."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ShuffledOrder:
    """A new permutation for each epoch; the incomplete last batch of an epoch is dropped.

    Any step can be computed without state, so a resumed run continues with the next batch.
    """

    seed: int
    size: int  # images in the data set
    batch_size: int
    steps: int  # length of the run

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Returns the image indices i32[B] of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        # Of the threads that reach a new epoch at once, one computes its permutation.
        with _LOCK:
            permutation = _permutation(self.seed, epoch, self.size)
        return permutation[start : start + self.batch_size]


_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def in_order(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Returns batches i32[B] that cover `indices` once; the last is padded with its first index."""
    first = np.arange(0, len(indices), batch_size)[:, None]
    positions = first + np.arange(batch_size)
    positions = np.where(positions < len(indices), positions, first)
    return list(indices[positions].astype(np.int32))


def subset(size: int, limit: int, seed: int) -> np.ndarray:
    """Returns sorted indices i32 of `limit` random images of `size`; all images if limit is 0."""
    if not limit or size <= limit:
        return np.arange(size, dtype=np.int32)
    drawn = np.random.default_rng(seed).choice(size, limit, replace=False)
    return np.sort(drawn).astype(np.int32)
