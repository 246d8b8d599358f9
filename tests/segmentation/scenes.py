"""Writes scenes of coloured shapes in VOC's folders, and defines runs that take seconds."""

import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from moco_jax.segmentation import config as base

COLORS = ((60, 60, 60), (220, 50, 50), (50, 200, 60), (60, 80, 230))  # of the classes
CLASSES = len(COLORS)


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image uint8[h, w, 3] and mask uint8[h, w] of boxes and discs; edges are 255."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for _ in range(2):
        label, radius = rng.integers(1, CLASSES), rng.uniform(6, 12)
        down, across = np.abs(y - rng.uniform(0, height)), np.abs(x - rng.uniform(0, width))
        distance = np.hypot(down, across) if rng.random() < 0.5 else np.maximum(down, across)
        mask[distance < radius + 1] = 255
        mask[distance < radius] = label
    image = np.asarray(COLORS)[np.where(mask == 255, 0, mask)]
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8), mask


def write(root: pathlib.Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Writes one scene, with the mask as a palette PNG."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
    indexed = Image.fromarray(mask)
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert indexed.mode == "P"
    indexed.save(root / "SegmentationClass" / f"{name}.png")


def write_list(root: pathlib.Path, split: str, names: list[str]) -> None:
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def make(root: pathlib.Path, train: int = 32, val: int = 11, seed: int = 0) -> pathlib.Path:
    """Writes scenes with sides of 32 to 40 pixels; returns the folder."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}_{i:03}" for i in range(count)]
        for name in names:
            write(root, name, *scene(rng, *rng.integers(32, 41, 2)))
        write_list(root, split, names)
    return root


def tiny_config(path, encoder="", **changes) -> ConfigDict:
    """Returns a run of 4 steps, one epoch; `data__path=x` changes a nested key."""
    c = base.base()
    c.update_from_flattened_dict(
        {
            "name": "tiny_segment",
            "pretrained": str(encoder),
            "epochs": None,
            "steps": 4,
            "batch_size": 8,
            "lr": 0.05,
            "lr_batch": 8,
            "lr_schedule": "constant",
            "log_every": 1,
            "checkpoint_every": 2,
            "classes": CLASSES,
            "head.width": 16,
            "head.dilation": 2,
            "data.path": str(path),
            "data.train_split": "train",
            "data.image_size": 32,
            "data.threads": 2,
        }
    )
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c
