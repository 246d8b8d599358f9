"""What a logger must be able to do."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Sink(Protocol):
    """A place that takes what a run logs, on process 0. It may raise: the caller goes on."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one number for each name."""
        ...

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Takes images uint8[N, H, W, 3]."""
        ...

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Takes finite values f32[N], N above 0, to show their distribution."""
        ...

    def close(self) -> None:
        """Writes or sends what is left."""
        ...
