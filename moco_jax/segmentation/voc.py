"""Reads images with a label per pixel (scenes) from folders like PASCAL VOC's.

JPEGImages/<name>.jpg                    or .jpeg, .png
SegmentationClass/<name>.png             a palette or grey PNG of labels; 255 is ignored
ImageSets/Segmentation/<split>.txt       one name per line
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moco_jax.data.loading import pillow
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import MAX_MEGAPIXELS, BadImage, Decoding, megapixels
from moco_jax.data.sources.regular_file import read_file

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
    max_pixels: int  # of an image

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image uint8[h, w, 3] and its mask uint8[h, w]; safe to call from threads.

        Raises:
          BadScene: if a file can't be read or a label is not allowed.
        """
        path = self.images[index]
        try:
            image = decode(read_file(path), self._decoding(index))
        except (BadImage, OSError) as error:
            raise BadScene(f"{path}: {error}") from error
        mask = _read_mask(self.masks[index], self.max_pixels)
        wrong = np.setdiff1d(mask, [*range(self.classes), IGNORED])
        if wrong.size:
            raise BadScene(
                f"{self.masks[index]} has label {wrong[0]}; allowed for classes={self.classes}: 0 "
                f"to {self.classes - 1}, and {IGNORED} for ignored pixels"
            )
        return image, mask

    def _decoding(self, index: int) -> Decoding:
        # Masks follow the pixels as they are stored, so the EXIF orientation is not applied.
        canvas = int(self.sizes[index].max())
        return Decoding(canvas, exif_orientation=False, max_pixels=self.max_pixels)


def open_scenes(
    path: str,
    split: str,
    masks: str,
    classes: int,
    threads: int,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Scenes:
    """Returns the scenes of a split; reads the header of every file.

    Args:
      path: folder that contains `JPEGImages`, the masks and `ImageSets`; ~ is the home folder.
      split: name of a list, without `.txt`.
      masks: name of the masks' folder.
      threads: number of threads that read headers.
      max_megapixels: images with more pixels are unreadable.

    Raises:
      FileNotFoundError: if a folder, the list, an image or a mask is missing.
      BadScene: if a file can't be read or a mask's size differs from its image's.
      ValueError: if the list is empty.
    """
    root = pathlib.Path(path).expanduser()
    names = _listed(root, split)
    images = _found(root / "JPEGImages", names, _ENDINGS)
    mask_files = _found(root / masks, names, (".png",))
    max_pixels = megapixels(max_megapixels)
    with ThreadPoolExecutor(threads) as pool:
        sizes = pool.map(
            lambda *pair: _common_size(pair[0], pair[1], max_pixels), images, mask_files
        )
        sizes = np.asarray(list(sizes), np.int32)
    return Scenes(f"{root}, {split}", images, mask_files, sizes, classes, max_pixels)


def _listed(root: pathlib.Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; --config.data.path must be a folder like "
            f"VOCdevkit/VOC2012, got {root}"
        )
    file = folder / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(
            f"the list {file} does not exist; {folder} has: {known}. --config.data.train_split and "
            "--config.data.test_split name lists"
        )
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"the list {file} is empty; it must have one name per line")
    return names


def _found(folder: pathlib.Path, names: list[str], endings: Sequence[str]) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the folder {folder} does not exist; --config.data.masks names that of the masks"
        )
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


def _common_size(image: pathlib.Path, mask: pathlib.Path, max_pixels: int) -> tuple[int, int]:
    size, mask_size = _size(image, max_pixels), _size(mask, max_pixels)
    if size != mask_size:
        raise BadScene(
            f"{mask} is {mask_size[1]}x{mask_size[0]}, but its image {image} is "
            f"{size[1]}x{size[0]}; the sizes must be equal"
        )
    return size


def _size(path: pathlib.Path, max_pixels: int) -> tuple[int, int]:
    try:
        with pillow.damage_is_bad_image(), pillow.opened(read_file(path), max_pixels) as image:
            return image.height, image.width
    except (BadImage, OSError, MemoryError) as error:
        raise BadScene(f"{path} can't be read as an image: {error}") from error


def _read_mask(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    """Returns labels uint8[h, w]: palette indices or grey levels."""
    try:
        with (
            pillow.damage_is_bad_image(),
            pillow.opened(read_file(path), max_pixels, ("PNG",)) as image,
        ):
            mask, mode = np.asarray(image), image.mode
    except (BadImage, OSError, MemoryError) as error:
        raise BadScene(f"{path} can't be read as a mask: {error}") from error
    if mode not in ("P", "L"):
        raise BadScene(f"{path} has image mode {mode}; a mask must be a palette or grey PNG")
    return mask
