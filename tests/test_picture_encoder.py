"""Pictures of every kind in, features out: those of the model on the pictures of evaluation."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax import pretrained
from moco_jax.data.views import evaluation_view
from tests.encoders import write_encoder
from tests.tiny import tiny_config

CONFIG = tiny_config(data__canvas=64, data__eval_resize=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The paths of an encoder with a head and of one without."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = folder / "whole.safetensors", folder / "backbone.safetensors"
    write_encoder(paths[0], CONFIG)
    write_encoder(paths[1], CONFIG, head=False)
    return paths


@pytest.fixture(scope="module")
def encoder(files):
    return moco_jax.load(files[0], batch_size=16)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(10, 12), (40, 20), (8, 8), (17, 33), (64, 64)] * 8
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes[:37]]


def expected(files, pictures, method="features"):
    """The features of all pictures at once, on one canvas."""
    read, data = pretrained.read(files[0]), CONFIG.data
    view = evaluation_view(8, 10, data.mean, data.std)
    canvases = np.zeros((len(pictures), 64, 64, 3), np.uint8)
    for canvas, picture in zip(canvases, pictures, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    sizes = np.int32([picture.shape[:2] for picture in pictures])
    apply = jax.jit(lambda x, s: read.encoder.apply(read.variables, view(x, s), method=method))
    return np.asarray(apply(canvases, sizes))


def test_any_number_of_any_size(files, encoder, pictures):
    features = encoder(pictures)  # two batches of 16, and one of 5 rows of which are real
    assert features.shape == (37, encoder.dim) and features.dtype == np.float32
    # On another canvas a pixel of a few pictures may round to the next level.
    off = np.abs(features - expected(files, pictures)).max(axis=1) / features.max()
    assert np.median(off) < 1e-5 and off.max() < 2e-3
    assert np.ptp(features / features.max(), axis=0).max() > 0.1
    np.testing.assert_allclose(encoder(iter(pictures[:1])), features[:1], atol=5e-3)
    assert encoder([]).shape == (0, encoder.dim)


def test_the_head_gives_unit_vectors(files, pictures):
    encoder = moco_jax.load(files[0], output="head")
    features = encoder(pictures[:5])
    assert encoder.dim == features.shape[1] == 16
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features, expected(files, pictures[:5], "projection"), atol=5e-3)


def test_every_kind_of_picture_is_understood(encoder, pictures, tmp_path):
    picture = pictures[3]
    image, png = Image.fromarray(picture), io.BytesIO()
    image.save(tmp_path / "a.png")
    image.save(png, "png")
    path = tmp_path / "a.png"
    kinds = [picture, path, str(path), png.getvalue(), image, image.convert("RGBA")]
    features = encoder(kinds)
    np.testing.assert_array_equal(features, features[:1].repeat(len(kinds), 0))
    grey = encoder([picture[:, :, 0], picture[:, :, :1], image.getchannel(0)])
    np.testing.assert_array_equal(grey, grey[:1].repeat(3, 0))
    np.testing.assert_array_equal(encoder(np.stack([picture] * 3)), encoder([picture] * 3))
    assert (grey[0] != features[0]).any()


def test_it_compiles_once_for_its_batches(encoder, pictures):
    encoder(pictures)
    compiled = encoder._encode._cache_size()
    encoder(pictures + pictures)
    assert encoder._encode._cache_size() == compiled
    encoder(pictures[:2])
    compiled = encoder._encode._cache_size()
    encoder(pictures[:7])  # 8 rows, one a device, for both
    assert encoder._encode._cache_size() == compiled


def test_it_tells_what_it_is(encoder):
    assert repr(encoder) == (
        "<PictureEncoder resnet10 of a whole encoder: "
        "pictures -> backbone f32[N, 64], 8 of 10 pixels>"
    )
    assert encoder.config.model.name == "resnet10"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.jpg", r"give a list of pictures, got one \(str\)"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\); .*; of one picture make \[picture\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), "move the channels last first"),
        (np.zeros((2, 8, 8, 3)), "picture 0: it can't be read: the array is float64; allowed"),
        ([b"no picture"], "picture 0: it can't be read: no known image format"),
        ([np.zeros((8, 8, 3), np.uint8), 3], "picture 1: it can't be read: got int; allowed: a pa"),
        (3, "must be an array or a list, got int"),
    ],
)
def test_what_is_no_picture_is_named(encoder, given, message):
    with pytest.raises(ValueError, match=message):
        encoder(given)


def test_what_the_encoder_lacks_is_refused(files):
    assert moco_jax.load(files[1])(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 64)
    with pytest.raises(ValueError, match="a backbone has no head; allowed: output='backbone'"):
        moco_jax.load(files[1], output="head")
    with pytest.raises(ValueError, match="unknown output 'heads'; known: backbone, head"):
        moco_jax.load(files[0], output="heads")
    with pytest.raises(FileNotFoundError, match="there is no encoder at"):
        moco_jax.load("/no/such/place")


def test_the_package_alone_imports_nothing(repository):
    code = "import sys, moco_jax; assert not {'jax', 'numpy'} & set(sys.modules); moco_jax.load"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        moco_jax.__getattr__("lode")
    assert "load" in dir(moco_jax)
