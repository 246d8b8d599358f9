"""Small images as one large one."""

import numpy as np

_MIN_SIZE = 64  # pixels; smaller images are enlarged
_GAP = 4  # pixels of white between images


def grid(cells: np.ndarray) -> np.ndarray:
    """Returns views uint8[N, V, S, S, 3] as one image of N rows and V columns."""
    enlarge = -(-_MIN_SIZE // cells.shape[2])
    cells = cells.repeat(enlarge, axis=2).repeat(enlarge, axis=3)
    gap = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    rows = np.pad(cells, gap, constant_values=255).transpose(0, 2, 1, 3, 4)
    height, width = rows.shape[0] * rows.shape[1], rows.shape[2] * rows.shape[3]
    return rows.reshape(height, width, 3)[:-_GAP, :-_GAP]
