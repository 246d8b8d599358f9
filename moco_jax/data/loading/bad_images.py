"""Files that are no images: each named once, counted, and too many stop the run."""

import threading

from absl import logging

from moco_jax.data.sources.source import Source

_SHOWN = 10  # of the bad images, in the error


class BadImages:
    """The unreadable images of a source that were met so far; safe to use from threads."""

    def __init__(self, source: Source, max_fraction: float):
        """Begins with none.

        Args:
          source: whose images are counted.
          max_fraction: of the source, beyond which the run stops.
        """
        self._source, self._max_fraction = source, max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, index: int, error: Exception) -> None:
        """Records and names an image, unless it is known.

        Raises:
          ValueError: when the bad are more than the allowed fraction of all.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = str(error)
            reasons = dict(self._reasons)
        name, total = self._source.names[index], len(self._source)
        logging.warning("skipped, not readable as an image: %s (%s)", name, error)
        if len(reasons) > max(1, self._max_fraction * total):  # one may be bad in a small set
            shown = [
                f"  {self._source.names[i]}: {why}" for i, why in list(reasons.items())[:_SHOWN]
            ]
            raise ValueError(
                f"{len(reasons)} of the {total} images of {self._source.name} can't be read, "
                f"more than data.max_bad_fraction={self._max_fraction} allows:\n" + "\n".join(shown)
            )
