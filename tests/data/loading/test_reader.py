"""Unreadable images are counted by kind; the log stays short however many there are."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from moco_jax import config as config_lib
from moco_jax.data.loading import decode as decode_module
from moco_jax.data.loading import jpeg, loader
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.loading.reader import Reader, shallow
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import make_layout
from tests.data.loading.image_files import encoded, smooth_image


def source_of(files):
    def read(index):
        if isinstance(files[index], Exception):
            raise files[index]
        return files[index]

    return Source("images", read, [f"{i}.png" for i in range(len(files))], None, ())


GOOD = encoded(smooth_image(8, 8), "PNG")


def test_ten_bad_images_are_named_and_the_others_counted(caplog):
    files = [GOOD, b"", b"text", OSError("no permission"), *[b"x" * n for n in range(1, 100)]]
    reader = Reader(source_of(files), Decoding(8), max_bad_fraction=1.0)
    for _ in range(2):
        for index in range(len(files)):
            reader.read(index)
        reader.report()
    lines = [record.getMessage() for record in caplog.records]
    assert reader.bad == 102 and len(lines) == 12
    assert lines[0] == "skipped 1.png (the file is empty (0 bytes))"
    assert lines[10] == "more images can't be read; they are counted, not named"
    assert lines[11] == (
        "102 of the 103 images of images can't be read: 100 x no known image format, "
        "1 x the file is empty, 1 x no permission"
    )


def test_errors_of_the_system_are_counted_without_their_paths(caplog):
    missing = [FileNotFoundError(2, "No such file or directory", f"a/{i}.png") for i in range(6)]
    pipes = [OSError(f"can't read a/{i}.png: it is a named pipe; allowed: ...") for i in range(7)]
    short = [encoded(smooth_image(8, 8), "JPEG")[: 20 + i] for i in range(3)]
    reader = Reader(source_of([*missing, *pipes, *short]), Decoding(8), max_bad_fraction=1.0)
    for index in range(16):
        reader.read(index)
    reader.report()
    assert (
        caplog.records[-1]
        .getMessage()
        .endswith(
            "can't be read: 7 x it is a named pipe, 6 x No such file or directory, "
            "3 x a JPEG of N bytes whose header is damaged"
        )
    )


def test_few_bad_images_have_no_summary(caplog):
    reader = Reader(source_of([GOOD, b""]), Decoding(8), max_bad_fraction=1.0)
    reader.read(1)
    reader.report()
    assert len(caplog.records) == 1


def test_too_many_bad_images_are_an_error_with_their_kinds(caplog):
    reader = Reader(source_of([GOOD, b"", b"text", GOOD]), Decoding(8), max_bad_fraction=0.1)
    with pytest.raises(
        ValueError,
        match=r"2 of the 4 images .* data.max_bad_fraction=0.1 allows "
        r"\(1 x the file is empty, 1 x no known image format\); the last one is 2.png: no known",
    ):
        for index in range(4):
            reader.read(index)
    assert "skipped 1.png" in caplog.text and "2.png" not in caplog.text  # each is named once


@pytest.mark.parametrize("fast", [True, False])
def test_too_little_memory_is_a_bad_image(fast, monkeypatch, caplog):
    def fail(*args, **options):
        raise MemoryError

    if fast:
        monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", fail)
    else:
        monkeypatch.setattr(decode_module, "_shrink", fail)
    jpg = encoded(smooth_image(8, 8), "JPEG")
    reader = Reader(source_of([jpg, MemoryError()]), Decoding(8), max_bad_fraction=1.0)
    assert reader.read(0) is None and reader.read(1) is None
    assert "0.png (not enough memory to decode it)" in caplog.text
    assert "1.png (not enough memory to read it)" in caplog.text


def deep(largest):
    values = np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("megabytes", [0, 100], ids=["streamed", "resident"])
@pytest.mark.parametrize("largest, bits", [(255, 8), (4095, 12), (700, 12), (8191, 14)])
def test_dark_16_bit_images_are_warned_of_once(largest, bits, megabytes, caplog):
    config = config_lib.base().data
    config.update({"canvas": 16, "resident_megabytes": megabytes})
    source = source_of([deep(largest)] * 8)
    data = loader.load(source, config, make_layout())
    list(data.batches([np.arange(8, dtype=np.int32)] * 3))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    [line] = [record.getMessage() for record in warnings]
    assert f"images: the largest value of the first 16-bit images is {largest} of 65535" in line
    assert f"--config.data.bit_depth={bits} reads" in line


@pytest.mark.parametrize("largest, bits", [(8192, 16), (65535, 16), (4095, 12), (0, 16)])
def test_other_images_are_not(largest, bits):
    assert shallow(largest, Decoding(8, bit_depth=bits)) == ""
