"""All image formats decode to RGB that fits the canvas; errors explain damaged files."""

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, Decoding
from tests.data.loading.image_files import encoded, pil_loader, smooth_image
from tests.data.sources.stores import open_images

IMAGE = smooth_image(60, 81)
FILES = {
    "jpeg": encoded(IMAGE, "JPEG"),
    "jpeg 4:4:4": encoded(IMAGE, "JPEG", subsampling=0),
    "jpeg progressive": encoded(IMAGE, "JPEG", progressive=True),
    "jpeg grey": encoded(IMAGE.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(IMAGE.convert("CMYK"), "JPEG"),
    "png": encoded(IMAGE, "PNG"),
    "png grey": encoded(IMAGE.convert("L"), "PNG"),
    "png grey alpha": encoded(IMAGE.convert("LA"), "PNG"),
    "png bilevel": encoded(IMAGE.convert("1"), "PNG"),
    "png palette": encoded(IMAGE.quantize(16), "PNG"),
    "webp": encoded(IMAGE, "WEBP"),
    "bmp": encoded(IMAGE, "BMP"),
    "gif": encoded(IMAGE, "GIF"),
    "tiff": encoded(IMAGE, "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_torchvisions_loader(name):
    image = decode(FILES[name], Decoding(81))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pil_loader(FILES[name]))


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg grey", "jpeg cmyk"])
def test_padding_before_markers_changes_nothing(name):
    for canvas in (81, 39):
        plain, padded = FILES[name], FILES[name].replace(b"\xff\xc4", b"\xff\xff\xff\xc4", 1)
        how = Decoding(canvas)
        np.testing.assert_array_equal(decode(padded, how), decode(plain, how))


@pytest.mark.parametrize("name", FILES)
def test_larger_images_fit_the_canvas(name):
    image = decode(FILES[name], Decoding(39))
    full = pil_loader(FILES[name])
    if name.startswith("jpeg") and name != "jpeg cmyk":
        assert image.shape == (23, 31, 3)  # 3/8, rounded up; 81 * 4 / 8 would be over 39
        box = np.asarray(Image.fromarray(full).resize((31, 23), Image.Resampling.BOX))
        assert np.abs(image.astype(int) - box).mean() < 10
    else:
        averages = full.reshape(20, 3, 27, 3, 3).mean((1, 3))
        assert image.shape == (20, 27, 3)
        assert np.abs(image - averages).max() < 1


@pytest.mark.parametrize(
    "canvas, shape",
    [
        (500, (375, 500)),
        (499, (329, 438)),  # 7/8, rounded up
        (437, (282, 375)),  # 6/8
        (256, (188, 250)),  # 4/8
        (63, (47, 63)),  # 1/8
        (62, (24, 32)),  # 1/8, then halved
        (1, (1, 1)),
    ],
)
def test_jpeg_is_decoded_at_the_largest_eighth_that_fits(canvas, shape):
    data = encoded(smooth_image(375, 500), "JPEG")
    assert decode(data, Decoding(canvas)).shape == (*shape, 3)


def test_scaled_jpeg_is_the_average_of_its_pixels():
    data = encoded(smooth_image(64, 64), "JPEG", quality=95, subsampling=0)
    averages = pil_loader(data).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(decode(data, Decoding(32)) - averages).mean() < 1


def test_tiny_jpeg_keeps_its_pixels():
    data = encoded(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5), "JPEG")
    np.testing.assert_array_equal(decode(data, Decoding(32)), pil_loader(data))


def test_alpha_is_dropped_not_composited():
    rgba = np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)
    image = decode(encoded(Image.fromarray(rgba), "PNG"), Decoding(32))
    assert image[0, 0].tolist() == [200, 100, 50]


def test_palette_with_transparency_gives_no_warning():
    data = encoded(IMAGE.quantize(16), "PNG", transparency=bytes(range(16)))
    opaque = encoded(IMAGE.quantize(16), "PNG")
    np.testing.assert_array_equal(decode(data, Decoding(81)), decode(opaque, Decoding(81)))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_grey_arrays_get_three_equal_channels(shape):
    grey = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    expected = [[[1] * 3, [2] * 3, [3] * 3], [[4] * 3, [5] * 3, [6] * 3]]
    assert decode(grey.reshape(shape), Decoding(3)).tolist() == expected


def test_arrays_over_the_canvas_are_averaged():
    array = np.zeros((4, 4, 3), np.uint8)
    array[:2, :2] = [[[10] * 3, [20] * 3], [[30] * 3, [40] * 3]]
    assert decode(array, Decoding(2))[..., 0].tolist() == [[25, 0], [0, 0]]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((4, 4, 3), np.float32), "float32; allowed: uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\); allowed: \[H, W\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_unsupported_arrays_are_errors(array, message):
    with pytest.raises(BadImage, match=message):
        decode(array, Decoding(32))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"<html>404</html>", "no known image format; its 16 bytes start b'<html>404</h'"),
        (bytes(1000), "no known image format"),
        (FILES["jpeg"][:20], "a JPEG of 20 bytes whose header is damaged"),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "damaged: image file is truncated"),
        (FILES["jpeg"][:-2], "damaged: image file is truncated"),
        (FILES["jpeg progressive"][:-300], "damaged: image file is truncated"),
        (FILES["png"][: len(FILES["png"]) // 2], "damaged: image file is truncated"),
        (FILES["webp"][: len(FILES["webp"]) // 2], "damaged"),
        (FILES["gif"][: len(FILES["gif"]) // 2], "damaged"),
    ],
)
@pytest.mark.parametrize("canvas", [16, 512])
def test_errors_explain_damaged_files(data, message, canvas):
    with pytest.raises(BadImage, match=message):
        decode(data, Decoding(canvas))


def test_jpeg_with_a_repairable_fault_is_decoded():
    data = FILES["jpeg"]
    faulty = data[:-2] + b"\0\0\0\0" + data[-2:]
    np.testing.assert_array_equal(decode(faulty, Decoding(81)), decode(data, Decoding(81)))


def test_canvas_must_have_a_pixel():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        decode(FILES["jpeg"], Decoding(0))


def test_contents_decide_the_format_not_the_extension(tmp_path):
    (tmp_path / "png.jpg").write_bytes(FILES["png"])
    (tmp_path / "jpeg.png").write_bytes(FILES["jpeg"])
    (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
    train = open_images(tmp_path).train
    images = {name.rpartition("/")[2]: train.read(i) for i, name in enumerate(train.names)}
    how = Decoding(81)
    np.testing.assert_array_equal(decode(images["png.jpg"], how), pil_loader(FILES["png"]))
    np.testing.assert_array_equal(decode(images["jpeg.png"], how), pil_loader(FILES["jpeg"]))
    with pytest.raises(BadImage, match="no known image format"):
        decode(images["page.jpg"], how)
