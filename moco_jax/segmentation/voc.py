"""Images with a class for every pixel, in the folders of PASCAL VOC.

JPEGImages/<name>.jpg                    or .jpeg, .png
SegmentationClass/<name>.png             a palette or grey PNG, read as indices; 255: ignored
ImageSets/Segmentation/<split>.txt       a name a line
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from moco_jax.data.loading.decode import BadImage, decode

IGNORED = 255  # label of pixels that are neither trained on nor counted

_ENDINGS = (".jpg", ".jpeg", ".png")
_SHOWN = 3  # names in an error


class BadScene(ValueError):
    """An image and its mask that can't be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Images and their masks by index, in files.

    Attributes:
      name: what they are, for messages.
      images: paths [N].
      masks: paths [N].
      sizes: heights and widths, i32[N, 2].
      classes: C; labels are 0..C - 1 and 255.
    """

    name: str
    images: Sequence[pathlib.Path]
    masks: Sequence[pathlib.Path]
    sizes: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image uint8[h, w, 3] and its mask uint8[h, w]; safe to call from threads.

        Raises:
          BadScene: if one can't be read, or a label is beyond the classes.
        """
        path, height_width = self.images[index], self.sizes[index]
        try:
            image = decode(path.read_bytes(), int(height_width.max()))
        except (BadImage, OSError) as error:
            raise BadScene(f"{path}: {error}") from error
        mask = _read_mask(self.masks[index])
        strange = np.setdiff1d(mask, [*range(self.classes), IGNORED])
        if strange.size:
            raise BadScene(
                f"{self.masks[index]}: label {strange[0]} is beyond classes={self.classes}; "
                f"allowed: 0 to {self.classes - 1}, and {IGNORED} for what is ignored"
            )
        return image, mask


def open_scenes(path: str, split: str, masks: str, classes: int, threads: int) -> Scenes:
    """Returns the scenes of a split, the header of every file looked at.

    Args:
      path: the folder that holds `JPEGImages` and the others.
      split: name of a list, without `.txt`.
      masks: name of the folder of the masks.
      classes: C.
      threads: that read headers.

    Raises:
      FileNotFoundError: if a folder, the list, an image or a mask isn't there.
      BadScene: if an image's size is not its mask's, or one of them is no image.
      ValueError: if the list is empty.
    """
    root = pathlib.Path(path).expanduser()
    names = _listed(root, split)
    images = _found(root / "JPEGImages", names, _ENDINGS)
    masks_ = _found(root / masks, names, (".png",))
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(_common_size, images, masks_))
    return Scenes(f"{root}, {split}", images, masks_, np.asarray(sizes, np.int32), classes)


def _listed(root: pathlib.Path, split: str) -> list[str]:
    """Returns the names of a split."""
    folder = root / "ImageSets" / "Segmentation"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no {folder}; data.path must be a folder like VOCdevkit/VOC2012, got {root}"
        )
    file = folder / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"there is no list {file}; {folder} has: {known}")
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"the list {file} names no image")
    return names


def _found(folder: pathlib.Path, names: list[str], endings: Sequence[str]) -> list[pathlib.Path]:
    """Returns the file of each name.

    Raises:
      FileNotFoundError: with the first few that are missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    # Listed once: to ask a file system for each of 10,000 files takes long where it is remote.
    there = {f.name: f for f in folder.iterdir()}
    found = {n: there[n + e] for e in reversed(endings) for n in names if n + e in there}
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(names)} names of the list have no file in {folder} "
            f"({', '.join(endings)}): {', '.join(missing[:_SHOWN])}"
        )
    return [found[name] for name in names]


def _common_size(image: pathlib.Path, mask: pathlib.Path) -> tuple[int, int]:
    """Returns height and width, read from the headers."""
    size, others = _size(image), _size(mask)
    if size != others:
        raise BadScene(
            f"{mask} is {others[1]}x{others[0]}, but its image {image} is {size[1]}x{size[0]}"
        )
    return size


def _size(path: pathlib.Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise BadScene(f"{path} can't be read as an image: {error}") from error


def _read_mask(path: pathlib.Path) -> np.ndarray:
    """Returns uint8[h, w]: the indices of a palette, or the levels of a grey image."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mask, mode = np.asarray(image), image.mode
    except OSError as error:
        raise BadScene(f"{path} can't be read as a mask: {error}") from error
    if mode not in ("P", "L"):
        raise BadScene(f"{path} is an image of mode {mode}; a mask must be a palette or grey PNG")
    return mask
