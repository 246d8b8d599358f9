"""Reads images with a label per pixel (scenes) from folders like PASCAL VOC's.

JPEGImages/<name>.jpg                    or .jpeg, .png
SegmentationClass/<name>.png             a palette or grey PNG of labels; 255 is ignored
ImageSets/Segmentation/<split>.txt       one name per line
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from moco_jax.data.loading.decode import BadImage, decode

IGNORED = 255  # label of pixels that training and scores ignore

_ENDINGS = (".jpg", ".jpeg", ".png")
_MOST_LISTED = 3


class BadScene(ValueError):
    """An image or mask is unusable; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Image and mask files, by index."""

    name: str  # folder and split, for messages
    images: Sequence[pathlib.Path]
    masks: Sequence[pathlib.Path]
    sizes: np.ndarray  # i32[N, 2], height and width in pixels
    classes: int  # C; labels are 0..C - 1 and 255

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image uint8[h, w, 3] and its mask uint8[h, w]; safe to call from threads.

        Raises:
          BadScene: if a file can't be read or a label is not allowed.
        """
        path = self.images[index]
        try:
            image = decode(path.read_bytes(), int(self.sizes[index].max()))
        except (BadImage, OSError) as error:
            raise BadScene(f"{path}: {error}") from error
        mask = _read_mask(self.masks[index])
        wrong = np.setdiff1d(mask, [*range(self.classes), IGNORED])
        if wrong.size:
            raise BadScene(
                f"{self.masks[index]} has label {wrong[0]}; allowed for classes={self.classes}: 0 "
                f"to {self.classes - 1}, and {IGNORED} for ignored pixels"
            )
        return image, mask


def open_scenes(path: str, split: str, masks: str, classes: int, threads: int) -> Scenes:
    """Returns the scenes of a split; reads the header of every file.

    Args:
      path: folder that contains `JPEGImages`, the masks and `ImageSets`; ~ is the home folder.
      split: name of a list, without `.txt`.
      masks: name of the masks' folder.
      threads: number of threads that read headers.

    Raises:
      FileNotFoundError: if a folder, the list, an image or a mask is missing.
      BadScene: if a file can't be read or a mask's size differs from its image's.
      ValueError: if the list is empty.
    """
    root = pathlib.Path(path).expanduser()
    names = _listed(root, split)
    images = _found(root / "JPEGImages", names, _ENDINGS)
    mask_files = _found(root / masks, names, (".png",))
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(_common_size, images, mask_files))
    return Scenes(f"{root}, {split}", images, mask_files, np.asarray(sizes, np.int32), classes)


def _listed(root: pathlib.Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; data.path must be a folder like VOCdevkit/VOC2012, got "
            f"{root}"
        )
    file = folder / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"the list {file} does not exist; {folder} has: {known}")
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"the list {file} is empty; it must have one name per line")
    return names


def _found(folder: pathlib.Path, names: list[str], endings: Sequence[str]) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    # One listing is faster than a lookup per name (10,000) on a remote file system.
    files = {f.name: f for f in folder.iterdir()}
    found = {n: files[n + e] for e in reversed(endings) for n in names if n + e in files}
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(names)} names in the list have no file in {folder} "
            f"({', '.join(endings)}): {', '.join(missing[:_MOST_LISTED])}"
        )
    return [found[name] for name in names]


def _common_size(image: pathlib.Path, mask: pathlib.Path) -> tuple[int, int]:
    size, mask_size = _size(image), _size(mask)
    if size != mask_size:
        raise BadScene(
            f"{mask} is {mask_size[1]}x{mask_size[0]}, but its image {image} is "
            f"{size[1]}x{size[0]}; the sizes must be equal"
        )
    return size


def _size(path: pathlib.Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise BadScene(f"{path} can't be read as an image: {error}") from error


def _read_mask(path: pathlib.Path) -> np.ndarray:
    """Returns labels uint8[h, w]: palette indices or grey levels."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mask, mode = np.asarray(image), image.mode
    except OSError as error:
        raise BadScene(f"{path} can't be read as a mask: {error}") from error
    if mode not in ("P", "L"):
        raise BadScene(f"{path} has image mode {mode}; a mask must be a palette or grey PNG")
    return mask
