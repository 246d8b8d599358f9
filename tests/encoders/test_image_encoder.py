"""The encoder as a function of images: all kinds of images, all sizes, and errors."""

import io
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax.data.augment.views import evaluation_view
from moco_jax.encoders import pretrained
from tests.encoder_files import write_encoder
from tests.tiny import tiny_config

CONFIG = tiny_config(data__canvas=64, data__eval_resize=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns the paths of an encoder with a head and of one without."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = folder / "whole.safetensors", folder / "backbone.safetensors"
    write_encoder(paths[0], CONFIG)
    write_encoder(paths[1], CONFIG, head=False)
    return paths


@pytest.fixture(scope="module")
def encoder(files):
    return moco_jax.load(files[0], batch_size=16)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    sizes = [(10, 12), (40, 20), (8, 8), (17, 33), (64, 64)] * 8
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes[:37]]


def expected(files, images, method="features"):
    """Returns the features of all images in one batch, on one canvas."""
    read, data = pretrained.read(files[0]), CONFIG.data
    view = evaluation_view(8, 10, data.mean, data.std)
    canvases = np.zeros((len(images), 64, 64, 3), np.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    sizes = np.int32([image.shape[:2] for image in images])
    apply = jax.jit(lambda x, s: read.encoder.apply(read.variables, view(x, s), method=method))
    return np.asarray(apply(canvases, sizes))


def test_any_number_of_images_of_any_size(files, encoder, images):
    features = encoder(images)  # two batches of 16 images, and one of 5
    assert features.shape == (37, encoder.dim) and features.dtype == np.float32
    # On another canvas a pixel of a few images may round to the next level.
    off = np.abs(features - expected(files, images)).max(axis=1) / features.max()
    assert np.median(off) < 1e-5 and off.max() < 2e-3
    assert np.ptp(features / features.max(), axis=0).max() > 0.1
    np.testing.assert_allclose(encoder(iter(images[:1])), features[:1], atol=5e-3)
    assert encoder([]).shape == (0, encoder.dim)


def test_the_head_gives_unit_vectors(files, images):
    encoder = moco_jax.load(files[0], output="head")
    features = encoder(images[:5])
    assert encoder.dim == features.shape[1] == 16
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features, expected(files, images[:5], "projection"), atol=5e-3)


def test_every_kind_of_image_is_read(encoder, images, tmp_path):
    image = images[3]
    pil, png = Image.fromarray(image), io.BytesIO()
    pil.save(tmp_path / "a.png")
    pil.save(png, "png")
    path = tmp_path / "a.png"
    kinds = [image, path, str(path), png.getvalue(), pil, pil.convert("RGBA")]
    features = encoder(kinds)
    np.testing.assert_array_equal(features, features[:1].repeat(len(kinds), 0))
    grey = encoder([image[:, :, 0], image[:, :, :1], pil.getchannel(0)])
    np.testing.assert_array_equal(grey, grey[:1].repeat(3, 0))
    np.testing.assert_array_equal(encoder(np.stack([image] * 3)), encoder([image] * 3))
    assert (grey[0] != features[0]).any()


def test_images_are_upright_by_default(files, encoder, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the pixels are shown turned by 90 degrees
    image = Image.fromarray(images[3])
    image.save(tmp_path / "turned.png", exif=exif)
    photo = Image.open(tmp_path / "turned.png")
    upright = encoder([np.rot90(images[3], -1)])
    np.testing.assert_array_equal(encoder([tmp_path / "turned.png"]), upright)
    np.testing.assert_array_equal(encoder([photo]), upright)
    as_stored = moco_jax.load(files[0], exif_orientation=False)
    np.testing.assert_array_equal(as_stored([tmp_path / "turned.png"]), as_stored([images[3]]))
    assert (upright != as_stored([images[3]])).any()


def test_dark_16_bit_images_are_warned_of_once(files, caplog):
    deep = Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8))
    encoder = moco_jax.load(files[0])
    for _ in range(2):
        encoder([deep, deep])
    assert caplog.text.count("the largest value of the first 16-bit images is 4095") == 1
    assert "--config.data.bit_depth=12" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_only_regular_files_are_read(encoder, tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="a.jpg: it is a named pipe; allowed: a regular file"):
        encoder([tmp_path / "a.jpg"])


def test_batches_of_the_same_length_share_one_compilation(encoder, images):
    encoder(images)
    compiled = encoder._encode._cache_size()
    encoder(images + images)
    assert encoder._encode._cache_size() == compiled
    encoder(images[:2])
    compiled = encoder._encode._cache_size()
    encoder(images[:7])  # both have 8 rows, one a device
    assert encoder._encode._cache_size() == compiled


def test_repr_describes_the_encoder(encoder):
    assert repr(encoder) == (
        "<ImageEncoder resnet10 of a whole encoder: images -> backbone f32[N, 64], 8 of 10 pixels>"
    )
    assert encoder.config.model.name == "resnet10"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.jpg", r"must be a list or an array, got one image \(str\); give \[image\]"),
        (np.zeros((8, 8, 3), np.uint8), r"got \(8, 8, 3\); for a single image give \[image\]"),
        (
            np.zeros((2, 3, 8, 8), np.uint8),
            r"8, 8\); move the channels to the last axis",
        ),
        (np.zeros((2, 8, 8, 3)), "image 0 can't be read: the array is float64; allowed"),
        ([b"no image"], "image 0 can't be read: no known image format"),
        ([np.zeros((8, 8, 3), np.uint8), 3], "image 1 can't be read: got int; allowed: a pa"),
        (3, "must be a list or an array, got int"),
    ],
)
def test_error_names_what_is_not_an_image(encoder, given, message):
    with pytest.raises(ValueError, match=message):
        encoder(given)


def test_error_names_an_output_that_the_encoder_does_not_have(files):
    assert moco_jax.load(files[1])(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 64)
    with pytest.raises(ValueError, match="a backbone has no head; allowed: output='backbone'"):
        moco_jax.load(files[1], output="head")
    with pytest.raises(ValueError, match="output='heads' is unknown; allowed: backbone, head"):
        moco_jax.load(files[0], output="heads")
    with pytest.raises(FileNotFoundError, match="there is no encoder at"):
        moco_jax.load("/no/such/place")


def test_importing_the_package_does_not_import_jax(repository):
    code = "import sys, moco_jax; assert not {'jax', 'numpy'} & set(sys.modules); moco_jax.load"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        moco_jax.__getattr__("lode")
    assert "load" in dir(moco_jax)
