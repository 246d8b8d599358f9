"""Coloured digits: a small labelled data set that needs no download.

The images show scikit-learn's 1,797 handwritten 8x8 digits, enlarged, in random light colours on
random dark backgrounds at 32x32. The class depends on the shape only, so raw pixels separate the
classes badly and learned features separate them well.

The data set is a constant. All random draws use fixed seeds, and pixels use only float32 +, -, *,
/ and floor, which IEEE 754 rounds identically on every machine (no sin, no matrix product).
"""

import functools
import importlib.util
import pathlib

import numpy as np

SIZE = 32
CLASS_NAMES = tuple("0123456789")
# The splits have 1,497 digits x 4 = 5,988 train images and 300 digits x 4 = 1,200 test images.
# Each copy of a digit has its own placement and colours. No digit is in both splits.
TEST_DIGITS_PER_CLASS = 30
COPIES = 4
_SPLIT_SEED = 20_190_001
_DRAW_SEEDS = {"train": 20_190_002, "test": 20_190_003}
_FILE = "datasets/data/digits.csv.gz"  # in scikit-learn's folder
_CHUNK = 256  # images drawn at once; their temporaries fit into the processor's cache
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
# Luma of the paper and of the ink. If some digits were dark on light paper, the classes would take
# hours to learn instead of minutes.
_DARK, _LIGHT = (0.0, 0.35), (0.65, 1.0)
# A stronger background pattern would identify an image without its digit.
_PATTERN_STRENGTH = np.float32(0.3)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, 32, 32, 3] and labels int32 [N] of 'train' or 'test'.

    Raises:
      ValueError: if the split has another name.
      ModuleNotFoundError: if scikit-learn is not installed.
    """
    if split not in _DRAW_SEEDS:
        raise ValueError(f"digits has no split {split!r}; allowed: {', '.join(_DRAW_SEEDS)}")
    shapes, labels = _handwritten()
    chosen = np.tile(_split_indices(labels)[split], COPIES)
    rng = np.random.default_rng(_DRAW_SEEDS[split])
    chosen = chosen[rng.permutation(len(chosen))]
    parts = [chosen[i : i + _CHUNK] for i in range(0, len(chosen), _CHUNK)]
    return np.concatenate([_draw(shapes[part], rng) for part in parts]), labels[chosen]


@functools.cache  # read once for both splits
def _handwritten() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits: ink float32 [1797, 8, 8] in [0, 1] and labels int32 [1797]."""
    package = importlib.util.find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    files = [path for folder in folders if (path := pathlib.Path(folder, _FILE)).is_file()]
    if files:  # to import scikit-learn takes a second
        table = np.loadtxt(files[0], delimiter=",", dtype=np.float32)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    return (pixels.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int32)


def _split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the indices of the digits in 'train' and in 'test', sorted int64."""
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.zeros(len(labels), bool)
    for label in range(len(CLASS_NAMES)):
        test[rng.permutation(np.flatnonzero(labels == label))[:TEST_DIGITS_PER_CLASS]] = True
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}


def _draw(shapes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns images uint8 [B, 32, 32, 3] of digits float32 [B, 8, 8]."""
    batch = len(shapes)
    paper, ink = _colours(rng, batch, _DARK), _colours(rng, batch, _LIGHT)
    other_paper = _colours(rng, batch, _DARK)
    mix = _pattern(rng, batch)[..., None] * _PATTERN_STRENGTH
    mask = _place(shapes, rng)[..., None]
    image = paper[:, None, None] + mix * (other_paper - paper)[:, None, None]
    image = image + mask * (ink[:, None, None] - image)
    return np.floor(image * 255 + np.float32(0.5)).astype(np.uint8)


def _colours(rng: np.random.Generator, batch: int, luma: tuple[float, float]) -> np.ndarray:
    """Returns RGB float32 [B, 3] in [0, 1]; before clipping the luma lies in a range."""
    rgb = _uniform(rng, (batch, 3), 0, 1)
    own = (rgb[:, 0] * _LUMA[0] + rgb[:, 1] * _LUMA[1] + rgb[:, 2] * _LUMA[2])[:, None]
    return np.clip(_uniform(rng, (batch, 1), *luma) + (rgb - own), 0, 1)


def _pattern(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Returns the mixing weights of the two background colours, float32 [B, 32, 32] in [0, 1].

    Gradients, stripes, checkers and blobs are equally likely.
    """
    y, x = _grid()
    ahead = _direction(rng, batch)
    along = x * ahead[0] + y * ahead[1]
    across = y * ahead[0] - x * ahead[1]
    period = _uniform(rng, (batch, 1, 1), 8, 24)
    phase = _uniform(rng, (batch, 1, 1), 0, 1)
    stripes = _sharpen(_triangle(along / period + phase))
    other = _sharpen(_triangle(across / period + phase))
    checkers = stripes + other - 2 * stripes * other
    gradient = np.clip(along / 32 + np.float32(0.5), 0, 1)
    cells = _uniform(rng, (batch, 5, 5), 0, 1)
    blobs = _bilinear(cells, *np.broadcast_arrays(y / 8 + 2, x / 8 + 2))
    kind = rng.integers(0, 4, (batch, 1, 1))
    return np.select([kind == 0, kind == 1, kind == 2], [gradient, stripes, checkers], blobs)


def _place(shapes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns digits [B, 8, 8] scaled, rotated and moved, as ink float32 [B, 32, 32]."""
    y, x = _grid()
    column = (len(shapes), 1, 1)
    # Pixels per cell of the 8 cells: a digit is 50 to 88 % as high as the image.
    scale = _uniform(rng, column, 16 / 8, 28 / 8)
    stretch = _uniform(rng, column, 0.95, 1.25)
    # A digit is about 5.5 cells wide. It leaves the image by at most a pixel or two. If all digits
    # were centred, raw pixels would separate the classes nearly as well as learned features.
    y = y - _uniform(rng, column, -1, 1) * (17 - 4 * scale)
    x = x - _uniform(rng, column, -1, 1) * (17 - np.float32(2.75) * scale * stretch)
    # tan(angle / 2) gives sine and cosine by plain arithmetic; the angle is at most 18 degrees.
    tangent = _uniform(rng, column, -0.16, 0.16)
    square = tangent * tangent
    cosine, sine = (1 - square) / (1 + square), 2 * tangent / (1 + square)
    row = (cosine * y - sine * x) / scale + np.float32(3.5)
    col = (sine * y + cosine * x) / (scale * stretch) + np.float32(3.5)
    ink = _bilinear(np.pad(shapes, ((0, 0), (1, 1), (1, 1))), row + 1, col + 1)
    # Bilinear sampling blurs strokes over several pixels; a steeper edge makes them legible.
    return np.clip((ink - np.float32(0.3)) * 4, 0, 1)


def _bilinear(cells: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Returns cells [B, R, C] sampled at positions float32 [B, 32, 32], clamped to the border."""
    rows, cols = cells.shape[1:]
    row, col = np.clip(row, 0, rows - 1), np.clip(col, 0, cols - 1)
    top = np.minimum(np.floor(row), rows - 2).astype(np.int32)
    left = np.minimum(np.floor(col), cols - 2).astype(np.int32)
    down, right = row - top.astype(np.float32), col - left.astype(np.float32)
    flat = cells.reshape(-1)
    first = top * cols + left + (np.arange(len(cells)) * rows * cols)[:, None, None]
    upper = flat[first] + right * (flat[first + 1] - flat[first])
    lower = flat[first + cols] + right * (flat[first + cols + 1] - flat[first + cols])
    return upper + down * (lower - upper)


def _direction(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Returns random directions (x, y), float32 [2, B, 1, 1] with |x| + |y| = 1."""
    x = _uniform(rng, (batch, 1, 1), -1, 1)
    sign = np.where(rng.random((batch, 1, 1)) < 0.5, np.float32(1), np.float32(-1))
    return np.stack([x, sign * (1 - np.abs(x))])


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Returns y [32, 1] and x [1, 32] of the pixels, relative to the centre of the image."""
    centred = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    return centred[:, None], centred[None, :]


def _triangle(value: np.ndarray) -> np.ndarray:
    """Returns a triangle wave of period 1 between 0 and 1."""
    return np.abs(2 * (value - np.floor(value)) - 1)


def _sharpen(wave: np.ndarray) -> np.ndarray:
    """Returns a wave with its halves set to 0 and 1, and a short ramp between them."""
    return np.clip((wave - np.float32(0.5)) * 4 + np.float32(0.5), 0, 1)


def _uniform(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> np.ndarray:
    """Returns float32 draws from [low, high)."""
    span = np.float32(high) - np.float32(low)
    return np.float32(low) + span * rng.random(shape, dtype=np.float32)
