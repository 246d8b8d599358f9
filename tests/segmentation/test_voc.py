"""Reads scenes from VOC's folders; errors name the file."""

import numpy as np
import pytest
from PIL import Image

from moco_jax.parallel.mesh import make_layout
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import BadScene, open_scenes
from tests.segmentation import scenes


def opened(root, split="train", classes=scenes.CLASSES):
    return open_scenes(str(root), split, "SegmentationClass", classes, threads=2)


@pytest.fixture
def root(tmp_path):
    """Three scenes, with `c` as a JPEG; the list has two of them."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (20, 30)), ("b", (24, 16)), ("c", (8, 9))):
        scenes.write(tmp_path, name, *scenes.scene(rng, *size))
    image = Image.open(tmp_path / "JPEGImages/c.png")
    image.save(tmp_path / "JPEGImages/c.jpg")
    (tmp_path / "JPEGImages/c.png").unlink()
    scenes.write_list(tmp_path, "train", ["c", "a"])
    return tmp_path


def test_a_scene_has_the_image_and_the_palette_indices(root):
    found = opened(root)
    assert len(found) == 2 and found.sizes.tolist() == [[8, 9], [20, 30]]
    image, mask = found.read(1)
    np.testing.assert_array_equal(image, Image.open(root / "JPEGImages/a.png"))
    np.testing.assert_array_equal(mask, Image.open(root / "SegmentationClass/a.png"))
    assert mask.dtype == np.uint8 and 255 in mask and mask.shape == (20, 30)
    image, mask = found.read(0)
    assert image.shape == (8, 9, 3) and mask.shape == (8, 9)


def test_canvases_have_the_largest_size_and_pad_the_masks(root):
    data = SceneData(opened(root), 2, make_layout())
    plan = [np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int32), np.ones(8, np.int32)]
    first, second = data.batches(plan)
    assert data.canvas == (20, 30) and first["images"].shape == (8, 20, 30, 3)
    assert np.asarray(first["indices"]).tolist() == plan[0].tolist()
    assert np.asarray(first["sizes"])[:2].tolist() == [[8, 9], [20, 30]]
    masks, found = np.asarray(first["masks"]), data._scenes
    np.testing.assert_array_equal(masks[3, :8, :9], found.read(0)[1])
    assert (masks[3, 8:] == 255).all() and (masks[3, :, 9:] == 255).all()
    np.testing.assert_array_equal(np.asarray(second["images"])[7], found.read(1)[0])
    [resumed] = data.batches(plan, start=1)
    np.testing.assert_array_equal(resumed["masks"], second["masks"])


def test_error_names_what_is_missing(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder like VOCdevkit/VOC2012, got .*x"):
        opened(tmp_path / "x")
    with pytest.raises(
        FileNotFoundError,
        match="list .*val.txt does not exist; .* has: train. --config.data.train_split",
    ):
        opened(root, "val")
    scenes.write_list(root, "none", [])
    with pytest.raises(ValueError, match="none.txt is empty"):
        opened(root, "none")
    (root / "SegmentationClass/a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 names .*SegmentationClass .*: a$"):
        opened(root)
    with pytest.raises(FileNotFoundError, match="folder .*Aug does not exist; --config.data.masks"):
        open_scenes(str(root), "train", "Aug", 4, 1)


def test_error_names_a_mask_of_another_size(root):
    Image.new("P", (30, 21)).save(root / "SegmentationClass/a.png")
    with pytest.raises(BadScene, match=r"a.png is 30x21, but its image .*a.png is 30x20"):
        opened(root)


def test_masks_and_images_keep_the_pixels_as_they_are_stored(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(root / "JPEGImages/a.png").copy()
    stored.save(root / "JPEGImages/a.png", exif=exif)
    image, mask = opened(root).read(1)
    np.testing.assert_array_equal(image, stored)
    assert mask.shape == image.shape[:2]


def test_only_png_masks_within_the_limit_of_pixels_are_read(root):
    Image.new("L", (30, 20)).save(root / "SegmentationClass/a.png", "BMP")
    with pytest.raises(BadScene, match="a.png can't be read as a mask: no known image format"):
        opened(root).read(1)
    with pytest.raises(BadScene, match="can't be read as an image: too many pixels: 30x20"):
        open_scenes(str(root), "train", "SegmentationClass", 4, 1, max_megapixels=0.0005)


def test_error_names_a_label_beyond_the_classes(root):
    mask = np.zeros((20, 30), np.uint8)
    mask[3, 4] = 7
    scenes.write(root, "a", np.zeros((20, 30, 3), np.uint8), mask)
    with pytest.raises(
        BadScene, match=r"SegmentationClass/a.png has label 7; allowed for classes=4: 0 to 3, and"
    ):
        opened(root).read(1)
    # The error also leaves the threads.
    data = SceneData(opened(root), 2, make_layout())
    with pytest.raises(BadScene, match="has label 7; allowed for classes=4"):
        list(data.batches([np.ones(8, np.int32)]))


def test_error_names_a_colour_mask_or_a_damaged_file(root):
    Image.new("RGB", (30, 20)).save(root / "SegmentationClass/a.png")
    with pytest.raises(BadScene, match="a.png has image mode RGB; a mask must be a palette"):
        opened(root).read(1)
    whole = (root / "JPEGImages/a.png").read_bytes()
    (root / "JPEGImages/a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadScene, match="JPEGImages/a.png: the file is damaged"):
        opened(root).read(1)
    (root / "JPEGImages/a.png").write_bytes(b"no image")
    with pytest.raises(BadScene, match="JPEGImages/a.png can't be read as an image"):
        opened(root)
