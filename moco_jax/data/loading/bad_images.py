"""Counts unreadable images, logs each one once, and stops the run if there are too many."""

import threading

from absl import logging

from moco_jax.data.sources.source import Source

_SHOWN = 10  # bad images listed in the error


class BadImages:
    """The unreadable images of a source that were found so far; safe to use from threads."""

    def __init__(self, source: Source, max_fraction: float):
        """Starts with no bad images.

        Args:
          source: the images.
          max_fraction: largest allowed fraction of bad images in the source.
        """
        self._source, self._max_fraction = source, max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, index: int, error: Exception) -> None:
        """Counts and logs an image, unless it is already counted.

        Raises:
          ValueError: if the fraction of bad images is above the allowed one.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = str(error)
            reasons = dict(self._reasons)
        name, total = self._source.names[index], len(self._source)
        logging.warning("skipped unreadable image %s (%s)", name, error)
        if len(reasons) > max(1, self._max_fraction * total):  # a small source may have one
            shown = [
                f"  {self._source.names[i]}: {why}" for i, why in list(reasons.items())[:_SHOWN]
            ]
            raise ValueError(
                f"{len(reasons)} of the {total} images of {self._source.name} can't be read, "
                f"more than data.max_bad_fraction={self._max_fraction} allows:\n" + "\n".join(shown)
            )
