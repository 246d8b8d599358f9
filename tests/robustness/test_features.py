"""Files of features: damaged and tampered ones are one error that names the file, never wrong rows.

Names of images that are no text stand the same in every format.
"""

import io
import json
import os
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.sources.source import Source
from moco_jax.encoders import feature_file, feature_reading
from moco_jax.encoders.feature_file import FeatureRows, Features
from moco_jax.text import original
from tests.conftest import run_command
from tests.encoder_files import write_encoder
from tests.tiny import tiny_config

ENDINGS = (".npz", ".parquet")
ABOUT = {"encoder": "runs/x", "output": "backbone"}
NAMES = [
    b"a/caf\xe9.jpg",
    "a/ü.jpg".encode(),
    b"b/\x1b[31m.jpg",
    b"b/a\nb.jpg",
    b"b/back\\slash.jpg",
]
SHOWN = [r"a/caf\xe9.jpg", "a/ü.jpg", r"b/\x1b[31m.jpg", r"b/a\x0ab.jpg", r"b/back\\slash.jpg"]


def write(path: pathlib.Path, rows: int = 5, labelled: bool = True) -> Features:
    """Writes features of images with odd names; returns what reading gives."""
    rng = np.random.default_rng(0)
    names = [os.fsdecode(NAMES[i % 5]) for i in range(rows)]
    labels = np.arange(rows, dtype=np.int32) % 2 if labelled else None
    classes = (os.fsdecode(b"\xff"), "b") if labelled else ()
    source = Source("odd", lambda index: b"", names, labels, classes)
    features = rng.normal(size=(rows, 6)).astype(np.float32)
    parts = [FeatureRows(features[:2], np.arange(2)), FeatureRows(features[2:], np.arange(2, rows))]
    feature_file.write(path, parts, source, ABOUT)
    return feature_file.read(path)


def same(a: Features, b: Features) -> bool:
    labels = (a.labels is None) == (b.labels is None)
    return (
        labels
        and np.array_equal(a.features, b.features)
        and (a.labels is None or np.array_equal(a.labels, b.labels))
        and (a.names.tolist(), a.class_names) == (b.names.tolist(), b.class_names)
        and a.about == b.about
    )


def check(path: pathlib.Path, expected: Features | None) -> bool:
    """Reads a damaged file; returns whether it is refused."""
    try:
        found = feature_file.read(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error) and len(str(error)) < 1000, error
        assert "allow_pickle" not in str(error) and "\n" not in str(error), error
        return True
    if expected is not None:
        assert same(found, expected)
    assert found.features.dtype == np.float32 and np.isfinite(found.features).all()
    assert len(found.names) == len(found.features) > 0
    assert [found.class_name(row) for row in range(len(found.names))]
    return False


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_are_the_same_text_in_each_format(tmp_path, ending):
    found = write(tmp_path / f"x{ending}")
    assert found.names.tolist() == SHOWN and found.class_names == (r"\xff", "b")
    assert [os.fsencode(original(name)) for name in found.names] == NAMES


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Returns bytes with a few changes of one kind."""
    changed, at = bytearray(data), rng.randrange(len(data))
    end = min(len(data), at + rng.choice((1, 4, 16, 100)))
    kind = rng.randrange(7)
    if kind < 3:
        for _ in range(rng.choice((1, 1, 1, 3, 20))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del changed[at:]
    elif kind == 4:
        del changed[at:end]
    elif kind == 5:
        changed[at:end] = rng.choice((bytes(end - at), rng.randbytes(end - at), b"\xff" * 8))
    else:
        changed[at:at] = data[at:end]
    return bytes(changed)


def fuzz(path: pathlib.Path, expected: Features, seeds: range) -> int:
    """Reads this many damaged copies; returns how many are refused."""
    data, refused = path.read_bytes(), 0
    copy = path.with_name(f"damaged{path.suffix}")
    for seed in seeds:
        copy.write_bytes(damaged(random.Random(seed), data))
        refused += check(copy, expected)
    return refused


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_is_an_error_or_reads_the_same(tmp_path, ending, labelled):
    expected = write(tmp_path / f"x{ending}", labelled=labelled)
    assert fuzz(tmp_path / f"x{ending}", expected, range(150)) > 75


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_thousands_of_damaged_files(tmp_path, ending):
    expected = write(tmp_path / f"x{ending}", rows=40)
    assert fuzz(tmp_path / f"x{ending}", expected, range(1000, 4000)) > 1500


def npz(path: pathlib.Path, **changes) -> pathlib.Path:
    """Writes an .npz of good arrays with some changed; None leaves an array out."""
    arrays = {
        "features": np.ones((3, 2), np.float32),
        "names": np.array(["a", "b", "c"]),
        "labels": np.int32([0, 1, 1]),
        "class_names": np.array(["x", "y"]),
        "about": np.array(json.dumps(ABOUT | {"format": "moco_jax.features"})),
    }
    arrays = {name: x for name, x in (arrays | changes).items() if x is not None}
    np.savez(path, **arrays)
    return path


TAMPERED = [
    ({"features": None}, "it has no array 'features'"),
    ({"names": None}, "it has no array 'names'"),
    ({"about": None}, "it is not a file of features; allowed: "),
    ({"labels": None}, "it must have both labels and class_names, or neither"),
    ({"class_names": None}, "it must have both labels and class_names, or neither"),
    ({"features": np.ones((3, 2))}, r"features must be float32 \[N, F\], got float64 \[3, 2\]"),
    ({"features": np.ones(3, np.float32)}, r"must be float32 \[N, F\], got float32 \[3\]"),
    ({"features": np.ones((3, 0), np.float32)}, r"got float32 \[3, 0\]"),
    ({"features": np.ones((4, 2), np.float32)}, "it has 4 features, but 3 names"),
    ({"names": np.arange(3)}, r"names has the dtype int64 and the shape \(3,\)"),
    ({"labels": np.int32([0, 1])}, r"labels must be 3 integers, got int32 \[2\]"),
    ({"labels": np.float32([0, 1, 1])}, "labels must be 3 integers, got float32"),
    ({"labels": np.int64([0, 1, 2**32])}, "labels must be 0 to 1, .* got 0 to 4294967296"),
    ({"labels": np.int32([0, -2, 1])}, "labels must be 0 to 1, .* got -2 to 1"),
    ({"about": np.array("[" * 100_000)}, "'about' is not JSON"),
    ({"about": np.array("{")}, "'about' is not JSON"),
    ({"about": np.array("[1]")}, "it is not a file of features"),
    ({"about": np.array('{"format": "moco_jax.features"}')}, "must name the encoder and the outp"),
    ({"about": np.float32(3)}, "about has the dtype float32"),
    ({"names": np.array(["a", "b", "c"], object)}, "'names' holds Python objects; allowed: numb"),
    (
        {"features": np.float32([[1, 1], [np.nan, 1], [1, np.inf]])},
        "2 of its features are NaN or infinite, such as those of b, c",
    ),
]


@pytest.mark.parametrize(("changes", "message"), TAMPERED, ids=[m for _, m in TAMPERED])
def test_a_tampered_npz_is_named_with_its_fault(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"can't read the features of .*x.npz: .*{message}"):
        feature_file.read(npz(tmp_path / "x.npz", **changes))
    assert check(tmp_path / "x.npz", None)


def test_other_dtypes_of_the_same_values_are_read(tmp_path):
    features = np.asfortranarray(np.arange(6, dtype=">f4").reshape(3, 2))
    found = feature_file.read(
        npz(tmp_path / "x.npz", features=features, labels=np.uint8([0, 1, 1]))
    )
    assert found.features.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.labels is not None and found.labels.dtype == np.int32


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Bomb()))
    assert check(tmp_path / "x.npz", None)
    npz(tmp_path / "x.npz", names=np.array([Bomb()] * 3, object))
    assert check(tmp_path / "x.npz", None)
    assert not (tmp_path / "executed").exists()


def with_member(path: pathlib.Path, data: bytes, compression=zipfile.ZIP_DEFLATED) -> pathlib.Path:
    """Writes an .npz whose features are these bytes."""
    npz(path, features=None)
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("features.npy", data)
    return path


def header(shape: tuple, descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((10**12, 10**6)) + b"x" * 99, "must have 4000000000000000000 bytes; it has 99"),
        (header((3, -2)) + b"x" * 24, "has the dtype float32 and the shape"),
        (header((3, 2)) + b"x" * 23, "must have 24 bytes; it has 23"),
        (header((3, 2)) + b"x" * 25, "must have 24 bytes; it has 25"),
        (header((3, 2), "|O") + b"x" * 48, "holds Python objects"),
        (b"no array", "the file is damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "the file is damaged"),
        (b"", "the file is damaged"),
    ],
)
def test_the_header_of_an_array_is_not_believed(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        feature_file.read(with_member(tmp_path / "x.npz", data))
    assert check(tmp_path / "x.npz", None)


def test_sizes_are_compared_with_the_memory(tmp_path, monkeypatch):
    free = pathlib.Path.read_text
    monkeypatch.setattr(
        pathlib.Path,
        "read_text",
        lambda self: "MemAvailable: 1 kB" if str(self) == "/proc/meminfo" else free(self),
    )
    for ending in ENDINGS:
        with pytest.raises(ValueError, match="needs .* MB of memory, 0 MB are available"):
            write(tmp_path / f"x{ending}", rows=40)


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        with zipfile.ZipFile(npz(tmp_path / "x.npz"), "a") as archive:
            archive.writestr("labels.npy", b"")
    with pytest.raises(ValueError, match="it has the array 'labels' twice"):
        feature_file.read(tmp_path / "x.npz")


def test_an_ending_that_does_not_fit_is_named(tmp_path):
    write(tmp_path / "x.npz")
    (tmp_path / "x.npz").rename(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet: it is a .npz file; give it this ending"):
        feature_file.read(tmp_path / "x.parquet")


def parquet(path: pathlib.Path, **changes) -> pathlib.Path:
    """Writes a .parquet of good columns and notes with some changed; None leaves one out."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "name": pa.array(["a", "b", "c"]),
        "label": pa.array([0, 1, 1], pa.int32()),
        "features": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
    }
    notes = {
        "about": json.dumps(ABOUT | {"format": "moco_jax.features"}),
        "class_names": '["x", "y"]',
    }
    columns |= {name: x for name, x in changes.items() if name not in notes}
    notes |= {name: x for name, x in changes.items() if name in notes}
    table = pa.table({name: x for name, x in columns.items() if x is not None})
    notes = {name: x for name, x in notes.items() if x is not None}
    pyarrow.parquet.write_table(table.replace_schema_metadata(notes), path)
    return path


def test_a_parquet_without_a_checksum_is_read(tmp_path):
    """Versions before 0.2.0 wrote none."""
    found = feature_file.read(parquet(tmp_path / "x.parquet"))
    assert found.features.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, "it has 0 columns 'features'; allowed: 1"),
        (
            {"features": [[1.0], [2.0], [3.0]]},
            "the column 'features' is list.*; allowed: lists of one length",
        ),
        ({"name": [1, 2, 3]}, "the column 'name' is int64; allowed: string"),
        ({"name": ["a", None, "c"]}, "it has rows without a name or without features"),
        ({"label": [0, 1, 1]}, "the column 'label' is int64; allowed: int32"),
        ({"class_names": '["x"]'}, "labels must be 0 to 0, one of the 1 class names; got 0 to 1"),
        ({"class_names": "{}"}, "class_names must be a list of texts"),
        ({"class_names": None}, "'class_names' is not JSON"),
        ({"about": None}, "it is not a file of features"),
        ({"about": "[]"}, "it is not a file of features"),
    ],
)
def test_a_tampered_parquet_is_named_with_its_fault(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"can't read the features of .*x.parquet: {message}"):
        feature_file.read(parquet(tmp_path / "x.parquet", **changes))


def test_a_column_of_a_parquet_with_another_value_is_found(tmp_path):
    import pyarrow.parquet

    write(tmp_path / "x.parquet")
    with pyarrow.parquet.ParquetFile(tmp_path / "x.parquet") as file:
        table, notes = file.read(), file.metadata.metadata
    for column, values in (("name", ["z"] * 5), ("label", np.int32([0] * 5))):
        place = table.column_names.index(column)
        changed = table.set_column(place, column, [values]).replace_schema_metadata(notes)
        pyarrow.parquet.write_table(changed, tmp_path / "y.parquet")
        with pytest.raises(ValueError, match="do not have the checksum that was written"):
            feature_file.read(tmp_path / "y.parquet")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_an_error_with_the_name_of_the_file(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(pathlib.Path, "with_name", lambda self, name: pathlib.Path("/dev/full"))
    monkeypatch.setattr(pathlib.Path, "unlink", lambda self, missing_ok: None)
    with pytest.raises(OSError, match=f"can't write .*x{ending}: .*No space left on device"):
        write(tmp_path / f"x{ending}")


def test_no_features_are_no_file(tmp_path):
    source = Source("none", lambda index: b"", ["a"], None, ())
    empty = [FeatureRows(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))]
    for ending in ENDINGS:
        with pytest.raises(ValueError, match="no image of none can be read"):
            feature_file.write(tmp_path / f"x{ending}", empty, source, ABOUT)
    assert not list(tmp_path.iterdir())


def test_rows_that_are_not_finite_are_found_in_long_arrays(monkeypatch):
    monkeypatch.setattr(feature_reading, "_CHUNK_ROWS", 4)
    features = np.zeros((11, 2), np.float32)
    features[[3, 10]] = np.nan
    assert feature_reading.not_finite(features).tolist() == [3, 10]


def test_images_whose_names_are_no_text_from_the_folder_to_the_printed_row(repository, tmp_path):
    """Under a strict locale; the last one is unreadable."""
    write_encoder(tmp_path / "encoder.safetensors", tiny_config(data__canvas=16))
    files = [b"images/" + name for name in [*NAMES, b"b/\xff\n.jpg"]]
    for number, file in enumerate(files):
        path = os.path.join(os.fsencode(tmp_path), file)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if number < len(NAMES):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path, "PNG")
        else:
            pathlib.Path(os.fsdecode(path)).write_bytes(b"no image")
    found = {}
    for ending in ENDINGS:
        done = run_command(
            repository, "moco_jax.embed", "--encoder=encoder.safetensors", "--images=images",
            f"--out=x{ending}", "--duplicates=-1", "--format=csv",
            cwd=tmp_path, PYTHONIOENCODING="ascii:strict",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert r"skipped b/\xff\x0a.jpg (" in done.stderr
        rows = [line.split(",", 1)[1] for line in done.stdout.splitlines()[1:]]
        assert len(rows) == 10 and r"images/b/\x1b[31m.jpg" in done.stdout
        found[ending] = feature_file.read(tmp_path / f"x{ending}").names.tolist()
    assert found[".npz"] == found[".parquet"] == sorted(f"images/{name}" for name in SHOWN)
    assert sorted(os.fsencode(original(name)) for name in found[".npz"]) == sorted(files[:5])
