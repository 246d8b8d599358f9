"""Damaged and malicious .npz files end in one message; their headers are not trusted."""

import io
import random
import struct
import zipfile

import numpy as np
import pytest

from moco_jax.data.sources.archives import npz_file
from tests.data.sources.stores import open_images
from tests.data.sources.watchdog import fuzz, no_hang


def mutated_npz(seed):
    """Returns the bytes of a damaged .npz."""
    rng = random.Random(seed)
    file = io.BytesIO()
    images = np.zeros((4, 3, 3), np.uint8)
    save = rng.choice((np.savez, np.savez_compressed))
    save(file, images=images, labels=np.arange(4), test_images=images, test_labels=np.arange(4))
    data = bytearray(file.getvalue())
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data))
        how = rng.randrange(5)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1)))
        elif how == 3:
            data[at:at] = data[max(0, at - 40) : at]
        else:  # a header of numpy
            old, new = rng.choice(
                ((b"3, 3", b"9, 9"), (b"|u1", b"|O8"), (b"(4", b"(("), (b"{", b"["))
            )
            data = data.replace(old, new)
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 6000), marks=pytest.mark.slow)]
)
def test_damaged_npz(tmp_path, seeds):
    assert fuzz(tmp_path / "x.npz", mutated_npz, seeds) < len(seeds)


def npz(path, **arrays):
    """Writes an .npz whose members are the given bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)


def npy(shape, dtype="'|u1'", data=b"", version=(1, 0)):
    """Returns an array file whose header says what it wants."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return np.lib.format.magic(*version) + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "array, message",
    [
        (npy("(1000000000000, 2, 2)"), r"shape \(1000000000000, 2, 2\) of uint8, which is not"),
        (npy("(-1, 2, 2)"), "which is not"),
        (npy("(1, 2, 2)", data=bytes(3)), "which is not"),
        (npy("(1, 2, 2)", data=bytes(5)), "which is not"),
        (npy("(1,)", dtype="'|O'", data=bytes(8)), "Python objects"),
        (npy("(1,)", dtype="[('a', '|O')]", data=bytes(8)), "Python objects"),
        (npy("(1,)", version=(3, 0)), "format"),
        (npy("(" * 3000), "can't read the arrays"),
        (npy("__import__('os').abort()"), "can't read the arrays"),
        (b"", "can't read the arrays"),
        (b"PK\3\4", "can't read the arrays"),
    ],
)
def test_impossible_arrays(tmp_path, array, message):
    npz(tmp_path / "x.npz", images=array)
    with no_hang(), pytest.raises(ValueError, match=message) as error:
        open_images(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(error.value)


def test_arrays_larger_than_the_memory(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((100, 100, 100), np.uint8))
    monkeypatch.setattr(npz_file, "available_bytes", lambda: 1 << 19)
    with pytest.raises(ValueError, match="arrays need 0.000931 GiB, but only 0.000488 GiB of mem"):
        open_images(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0, 2**32], np.uint64), "largest label is 4294967296; allowed: below 100000"),
        (np.array([0, 2**64 - 1], np.uint64), "largest label is 18446744073709551615"),
        (np.array([0, 2**31]), "largest label is 2147483648"),
        (np.array([0, 2_000_000_000]), "largest label is 2000000000; .* with 2 images"),
        (np.array([0, -(2**32)]), "smallest label is -4294967296"),
        (np.array([0.0, 1.0]), "labels are float64"),
        (np.array([False, True]), "labels are bool"),
    ],
)
def test_impossible_labels(tmp_path, labels, message):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 3, 3), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "x.npz")
