"""Reads the images of a source, counts the unreadable ones and stops if there are too many."""

import threading

import numpy as np
from absl import logging

from moco_jax.data.loading.decode import BadImage, decode
from moco_jax.data.sources.source import Source

_SHOWN = 10  # bad images listed in the error


class Reader:
    """Decodes images of a source; safe to use from threads.

    `max_bad_fraction` is the largest allowed fraction of unreadable images in the source.

    Attributes:
      source: the images.
      canvas: longest side of a decoded image in pixels.
    """

    def __init__(self, source: Source, canvas: int, max_bad_fraction: float):
        self.source, self.canvas, self._max_fraction = source, canvas, max_bad_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def bad(self) -> int:
        """The number of unreadable images found so far."""
        return len(self._reasons)

    def read(self, index: int) -> np.ndarray | None:
        """Returns an image uint8[h, w, 3]; counts and logs an unreadable one and returns None.

        Raises:
          ValueError: if the fraction of bad images in the source is above the allowed one.
        """
        try:
            return decode(self.source.read(index), self.canvas)
        except (BadImage, OSError) as error:
            self._add(index, error)
            return None

    def _add(self, index: int, error: Exception) -> None:
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = str(error)
            reasons = dict(self._reasons)
        names, total = self.source.names, len(self.source)
        logging.warning("skipped unreadable image %s (%s)", names[index], error)
        if len(reasons) > max(1, self._max_fraction * total):  # a small source may have one
            shown = [f"  {names[i]}: {why}" for i, why in list(reasons.items())[:_SHOWN]]
            raise ValueError(
                f"{len(reasons)} of the {total} images of {self.source.name} can't be read, "
                f"more than data.max_bad_fraction={self._max_fraction} allows:\n" + "\n".join(shown)
            )
