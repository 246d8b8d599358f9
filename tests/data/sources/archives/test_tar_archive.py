"""Archives are read without unpacking; damaged and too large ones are errors."""

import gc
import gzip
import io
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.sources.archives import tar_archive
from tests.data.sources.stores import SPLIT_PATHS, contents, open_images, real, write_tar


def test_archive_names_may_start_with_dot(tmp_path):
    path = write_tar(tmp_path / "x.tar", ["./b/1.jpg", "./a/2.jpg"])
    assert open_images(path).train.names == ["a/2.jpg", "b/1.jpg"]


def test_contents_decide_the_compression(tmp_path):
    path = write_tar(tmp_path / "zipped.tar", ["b/1.jpg", "a/2.jpg"], "gz")
    assert contents(open_images(path).train) == ["a/2.jpg", "b/1.jpg"]


def test_hard_links_and_repeated_members(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in [("a.jpg", b"old"), ("a.jpg", b"new")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
    assert contents(open_images(tmp_path / "x.tar").train) == ["new", "new"]


def test_damaged_archives(tmp_path):
    path = write_tar(tmp_path / "x.tar", [f"{i}.jpg" for i in range(20)])
    whole = path.read_bytes()
    cases = {
        "cut.tar": (whole[:2000], "unexpected end|damaged"),
        "header.tar": (whole[:5120] + b"\1" * 512 + whole[5632:], "at byte 5120, after 5 members"),
        "text.tar": (b"<html>not found</html>" * 50, "damaged or not a tar"),
        "empty.tar": (b"", "damaged or not a tar"),
        "cut.tar.gz": (gzip.compress(whole)[:-40], "damaged or incomplete"),
        "flip.tar.gz": (gzip.compress(whole)[:-8] + bytes(8), "damaged or incomplete"),
        "cut.tar.bz2": (b"BZh91AY&SY" + bytes(50), "damaged or incomplete"),
        "cut.tar.xz": (b"\xfd7zXZ\x00" + bytes(50), "damaged or incomplete"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            open_images(tmp_path / name)


def test_large_compressed_archive_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_archive, "MAX_UNPACKED_BYTES", 4096)
    plain = write_tar(tmp_path / "x.tar", ["a/1.jpg", "b/2.jpg"])
    assert len(open_images(plain).train) == 2
    path = write_tar(tmp_path / "x.tgz", ["a/1.jpg", "b/2.jpg"], "gz")
    with pytest.raises(ValueError, match=r"decompress it first \(gunzip .*x.tgz\)"):
        open_images(path)


def test_archives_leave_no_open_file(tmp_path):
    if sys.platform != "linux":
        pytest.skip("counts /proc/self/fd")
    path = write_tar(tmp_path / "x.tar", SPLIT_PATHS)
    gc.collect()  # files of earlier tests may close meanwhile
    before = len(os.listdir("/proc/self/fd"))
    sources = open_images(path)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # both splits share one
    del sources
    assert len(os.listdir("/proc/self/fd")) == before


def test_truncated_archive_is_an_error(tmp_path):
    path = write_tar(tmp_path / "x.tar", ["a/1.jpg", "b/2.jpg"])
    train = open_images(path).train
    os.truncate(path, 515)
    with pytest.raises(OSError, match="ends 4 bytes too early"):
        train.read(0)


def test_cifar10_archive():
    sources = open_images(real("cifar10_jpeg.tar.gz"))
    assert np.bincount(sources.train.labels).tolist() == [5000] * 10
    assert np.bincount(sources.test.labels).tolist() == [1000] * 10
    assert sources.train.class_names[:3] == ("airplane", "automobile", "bird")
    assert sources.test.names[9999] == "test/truck/0999.jpg"
    assert decode(sources.test.read(9999), Decoding(32)).shape == (32, 32, 3)


def test_imagenet_samples():
    sources = open_images(real("imagenet_samples.tar"), held_out=0.1)
    assert len(sources.train) == 1000 and sources.train.labels is None and sources.test is None
    assert sources.train.names[0] == "n01440764_tench.JPEG"
    data = sources.train.read(0)
    image = decode(data, Decoding(512))
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))
