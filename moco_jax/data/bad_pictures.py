"""Files that are no pictures: each named once, counted, and too many stop the run."""

import threading

from absl import logging

from moco_jax.data.picture_source import Source

_SHOWN = 10  # of the bad pictures, in the error


class BadPictures:
    """The unreadable pictures of a source that were met so far; safe to use from threads."""

    def __init__(self, source: Source, max_share: float):
        """Begins with none.

        Args:
          source: whose pictures are counted.
          max_share: of the source, beyond which the run stops.
        """
        self._source, self._max_share = source, max_share
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, index: int, error: Exception) -> None:
        """Records and names a picture, unless it is known.

        Raises:
          ValueError: when the bad are more than the allowed share of all.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = str(error)
            reasons = dict(self._reasons)
        name, total = self._source.names[index], len(self._source)
        logging.warning("skipped, not readable as a picture: %s (%s)", name, error)
        if len(reasons) > max(1, self._max_share * total):  # one may be bad in a small set
            shown = [
                f"  {self._source.names[i]}: {why}" for i, why in list(reasons.items())[:_SHOWN]
            ]
            raise ValueError(
                f"{len(reasons)} of the {total} pictures of {self._source.name} can't be read, "
                f"more than data.max_bad_share={self._max_share} allows:\n" + "\n".join(shown)
            )
