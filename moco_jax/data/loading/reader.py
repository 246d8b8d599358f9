"""Reads the images of a source, counts the unreadable ones and stops if there are too many."""

import collections
import os
import re
import threading

import numpy as np

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, Decoding
from moco_jax.data.sources.source import Source
from moco_jax.terminal import logs
from moco_jax.text import printable

_SHOWN = 10  # bad images listed in the error, and named in the log
_NAMES = re.compile(r"^(\[Errno -?\d+\] |can't read .*?: )")  # that an OSError starts with
_SHALLOW = 1 << 13  # 16-bit images whose values are all below it seem to have fewer bits


class Reader:
    """Decodes images of a source; safe to use from threads.

    `max_bad_fraction` is the largest allowed fraction of unreadable images in the source.

    Attributes:
      source: the images.
      how: how they are decoded.
      largest: the largest value of images with 16 bits a channel so far, 0 without any.
    """

    def __init__(self, source: Source, how: Decoding, max_bad_fraction: float):
        self.source, self.how, self._max_fraction = source, how, max_bad_fraction
        self._reasons: dict[int, str] = {}
        self._reported = 0  # bad images in the last summary
        self.largest = 0
        self._lock = threading.Lock()

    @property
    def bad(self) -> int:
        """The number of unreadable images found so far."""
        return len(self._reasons)

    @property
    def skipped(self) -> str:
        """How many unreadable images there are of each kind, such as '2 x the file is empty'."""
        with self._lock:
            reasons = list(self._reasons.values())
        return _kinds(reasons)

    def read(self, index: int) -> np.ndarray | None:
        """Returns an image uint8[h, w, 3]; counts an unreadable one and returns None.

        Logs the first unreadable images; `report` logs how many there are.

        Raises:
          ValueError: if the fraction of bad images in the source is above the allowed one.
        """
        try:
            return decode(self.source.read(index), self.how, self._see)
        except (BadImage, OSError) as error:
            self._add(index, str(error))
        except MemoryError:
            self._add(index, "not enough memory to read it")
        return None

    def report(self) -> None:
        """Logs a summary of the bad images that were not named, if there are new ones."""
        with self._lock:
            reasons = list(self._reasons.values())
            if len(reasons) <= max(_SHOWN, self._reported):
                return
            self._reported = len(reasons)
        logs.warning(
            "%d of the %d images of %s can't be read: %s",
            len(reasons),
            len(self.source),
            self.source.name,
            _kinds(reasons),
        )

    def _see(self, largest: int) -> None:
        with self._lock:
            self.largest = max(self.largest, largest)

    def _add(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = reason
            count, total = len(self._reasons), len(self.source)
            too_many = count > max(1, self._max_fraction * total)  # a small source may have one
            reasons = list(self._reasons.values()) if too_many else []
        names = self.source.names
        if too_many:  # the others are named already
            raise ValueError(
                f"{count} of the {total} images of {self.source.name} can't be read, more than "
                f"data.max_bad_fraction={self._max_fraction} allows ({_kinds(reasons)}); the "
                f"last one is {printable(names[index])}: {reason}"
            )
        if count <= _SHOWN:
            name = _in_folder(names[index], self.source.name)
            logs.warning("skipped %s (%s)", printable(name), reason)
        if count == _SHOWN + 1:
            logs.warning("more images can't be read; they are counted, not named")


def _in_folder(name: str, where: str) -> str:
    """Returns the name of an image without the folder of its source."""
    start = len(os.path.commonprefix([name, where]).rstrip(os.sep))
    inner = name[start + 1 :] if name[start : start + 1] == os.sep else ""
    return name if not inner or inner.isdigit() else inner  # a number alone names nothing


def _kinds(reasons: list[str]) -> str:
    """Returns how many reasons there are of each kind: the words before the details."""
    without_names = (_NAMES.sub("", reason) for reason in reasons)
    kinds = (re.split("[:;(]", re.sub(r"\d+", "N", text))[0].strip() for text in without_names)
    counts = collections.Counter(kinds).most_common(_SHOWN)
    return ", ".join(f"{count} x {kind}" for kind, count in counts)


def shallow(largest: int, how: Decoding) -> str:
    """Returns a warning if 16-bit images seem to have fewer significant bits, or ''.

    `largest` is the largest value among the first images.
    """
    if not largest or largest >= _SHALLOW or how.bit_depth < 16:
        return ""
    bits = next(bits for bits in (8, 12, 14) if largest < 1 << bits)
    return (
        f"the largest value of the first 16-bit images is {largest} of 65535: they will be nearly "
        f"black; --config.data.bit_depth={bits} reads the lower {bits} bits"
    )
