"""The sizes of views and of evaluation that fit a data set's images."""

import math
import statistics
from collections.abc import Iterable

SIZES = (32, 64, 96, 128, 224)  # pixels, of views
SMALL = 64  # pixels; up to this size evaluation uses whole images, and networks the small stem


def view_size(sides: Iterable[int], most: int | None = None) -> tuple[int, float | None]:
    """Returns the size of views, and the median of the sides; None without sides.

    Args:
      sides: of some images, the shorter one of each, in pixels.
      most: largest size that is allowed.
    """
    sides = list(sides)
    median = statistics.median(sides) if sides else None
    allowed = [size for size in SIZES if most is None or size <= most] or [most or SIZES[-1]]
    if median is None:
        return allowed[-1], None
    return min(allowed, key=lambda size: abs(math.log(size / max(median, 1)))), median


def eval_resize(size: int) -> int:
    """Returns the shorter side before the centre crop: 256 for 224 as in the paper."""
    return size if size <= SMALL else round(size * 256 / 224)
