"""Folders of Parquet and Arrow files: which are read, how, and what damage is found."""

import importlib.util
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.tables import arrow, columns, pages, parquet
from moco_jax.data.sources.tables.extents import by_path
from tests.data.sources.stores import open_images
from tests.data.sources.tables import layouts


def write(path: pathlib.Path, data: dict, **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(data), path, **options)
    return path


def images(count: int = 4) -> list[bytes]:
    return [layouts.png(seed) for seed in range(count)]


@pytest.fixture
def decoded(monkeypatch):
    """The row groups that pyarrow decoded as a whole."""
    found, decode = [], parquet._Reader._decode
    monkeypatch.setattr(
        parquet._Reader,
        "_decode",
        lambda self, group: found.append(group.number) or decode(self, group),
    )
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0"},
        {"data_page_size": 16, "write_batch_size": 2},
        {"write_page_checksum": True},
        {"write_statistics": ["image"]},
    ],
)
def test_plain_columns_are_read_by_offset(tmp_path, decoded, options):
    data = images(11)
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": 4}
    path = write(tmp_path / "x.parquet", {"image": data}, **plain, **options)
    train = open_images(path).train
    assert [train.read(i) for i in (10, 0, 5, 4, 3)] == [data[i] for i in (10, 0, 5, 4, 3)]
    assert decoded == []


def test_other_columns_are_decoded_once(tmp_path, decoded):
    data = images(9)
    path = write(tmp_path / "x.parquet", {"image": data}, row_group_size=3)
    train = open_images(path).train
    assert (
        [train.read(i) for i in range(9)] * 2 == [train.read(i) for i in range(9)] * 2 == data * 2
    )
    assert decoded == [0, 1, 2]


def test_the_cache_of_decoded_row_groups_is_bounded(tmp_path, monkeypatch, decoded):
    path = write(tmp_path / "x.parquet", {"image": images(9)}, row_group_size=3)
    monkeypatch.setattr(parquet, "_MAX_CACHE", 2300)
    sources = open_images(path)
    assert any("python -m moco_jax.data.prepare" in note for note in sources.notes)
    for index in (0, 4, 8, 0, 8):
        sources.train.read(index)
    assert decoded == [0, 1, 2, 0]
    monkeypatch.setattr(parquet, "_MAX_CACHE", 10)
    with pytest.raises(ValueError, match="row group 0 of .*x.parquet has .* allowed: .* compres"):
        open_images(path)


def test_a_null_image_is_unreadable_and_the_others_are_not(tmp_path):
    data = [*images(3), None, *images(2)]
    plain = {"compression": "none", "use_dictionary": False}
    for options in (plain, {}):
        train = open_images(write(tmp_path / "x.parquet", {"image": data}, **options)).train
        assert train.read(2) == data[2] and train.read(5) == data[5]
        with pytest.raises(OSError, match="row 3 has no bytes of an image"):
            train.read(3)


@pytest.mark.parametrize(
    "names, train, test",
    [
        (["train/0000", "validation/0000"], "train", "validation"),
        (["default/partial-train/0000", "default/test/0000"], "train", "test"),
        (["data/train-00000-of-00001", "data/test-00000-of-00001-0a1b"], "train", "test"),
        (["cifar10-train", "cifar10-test"], "cifar10-train", "cifar10-test"),
        (["train", "extra"], "train", ""),
        (["0000", "0001"], "", ""),
        (["part-00000-c000", "part-00001-c000"], "", ""),
    ],
)
def test_splits_of_folders(tmp_path, names, train, test):
    for name in names:
        write(tmp_path / f"{name}.parquet", {"image": images(2), "label": ["a", "b"]})
    sources = open_images(tmp_path)
    assert sources.train.name == f"{tmp_path}" + (f", {train}" if train else "")
    assert (sources.test.name if sources.test else "") == (f"{tmp_path}, {test}" if test else "")


@pytest.mark.parametrize(
    "names, options, message",
    [
        (["test", "a"], {}, "but no train: a guess would train on test images; set .*train_split"),
        (["training", "trainset"], {}, "several splits that look like train: training, trainset"),
        (
            ["x/train", "y/train"],
            {},
            "has train in several folders: x/, y/; set --config.data.path",
        ),
        (["train"], {"train_split": "all"}, "data.train_split='all' must be a split; found train"),
        (["train"], {"test_split": "dev"}, "data.test_split='dev' must be a split with labels"),
        (["train"], {"image_column": "x"}, "image_column=x must be a column with bytes of images"),
        (["train"], {"label_column": "x"}, "label_column=x must be a column with numbers or texts"),
    ],
)
def test_ambiguous_folders_are_errors(tmp_path, names, options, message):
    for name in names:
        write(tmp_path / f"{name}.parquet", {"image": images(2), "label": ["a", "b"]})
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path, **options)


def test_links_and_what_is_left_out(tmp_path):
    blob = write(tmp_path / "blobs/x.parquet", {"image": images(2)})
    (tmp_path / "snapshot/data").mkdir(parents=True)
    (tmp_path / "snapshot/data/train-00000-of-00001.parquet").symlink_to(blob)
    (tmp_path / "snapshot/data/test-00000-of-00001.parquet").symlink_to(tmp_path / "absent")
    (tmp_path / "snapshot/README.md").write_text("x")
    sources = open_images(tmp_path / "snapshot")
    assert len(sources.train) == 2 and sources.test is None
    assert sources.notes[1:3] == (
        "left out: 1 file: 1 .md",
        "left out: 1 x broken link: data/test-00000-of-00001.parquet",
    )


def test_ambiguous_columns_are_errors_and_keys_choose(tmp_path):
    data = {"a": images(2), "b": images(3)[1:], "class": [1, 2], "category": ["x", "y"]}
    path = write(tmp_path / "x.parquet", data)
    with pytest.raises(ValueError, match="several columns may be the image: a, b; set .*image_col"):
        open_images(path)
    with pytest.raises(ValueError, match="several columns may be the label: class, category; set"):
        open_images(path, image_column="b")
    train = open_images(path, image_column="b", label_column="category").train
    assert train.read(0) == data["b"][0] and train.class_names == ("x", "y")
    with pytest.raises(ValueError, match="no column of images .*it has name .string., features"):
        open_images(write(tmp_path / "f.parquet", {"name": ["a"], "features": [[1.0]]}))


def test_files_with_other_columns_are_named(tmp_path):
    write(tmp_path / "a.parquet", {"image": images(2)})
    write(tmp_path / "b.parquet", {"image": images(2), "label": [1, 2]})
    with pytest.raises(
        ValueError, match=r"b.parquet has other columns or classes than .*a.parquet"
    ):
        open_images(tmp_path)
    assert len(open_images(tmp_path, exclude="b.parquet").train) == 2


def test_labels_without_a_name_and_hidden_labels(tmp_path):
    found = layouts.items(("a", "b"), ("train",), 2)
    whole = layouts.table(found, ("a", "b"))
    for numbers, wrong in (([0, 1, 2, 0], 2), ([-2, 0, 1, 1], -2)):
        column = whole.set_column(1, whole.schema.field(1), pa.array(numbers, pa.int64()))
        pyarrow.parquet.write_table(column, tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=f"the label {wrong} has no class name; the schema"):
            open_images(tmp_path / "x.parquet")
    column = whole.set_column(1, whole.schema.field(1), pa.array([-1] * 4, pa.int64()))
    pyarrow.parquet.write_table(column, tmp_path / "x.parquet")
    assert open_images(tmp_path / "x.parquet").train.labels is None


def test_damaged_files_are_one_message(tmp_path):
    good = layouts.parquet(tmp_path / "p", layouts.items(splits=("train",), count=2))
    file = next(good.rglob("*.parquet"))
    whole = file.read_bytes()
    for data in (b"", b"text", b"PAR1", whole[:-9], whole[: len(whole) // 2], whole[::-1]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"{file} is damaged or not complete"):
            open_images(good)
    stream = layouts.arrow(tmp_path / "a", layouts.items(splits=("train",), count=2))
    file = next(stream.rglob("*.arrow"))
    whole = file.read_bytes()
    for data in (b"", b"text", b"ARROW1", whole[:-200], whole[: len(whole) // 2], whole[100:]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"{file} is damaged or not complete"):
            open_images(stream)


@pytest.mark.parametrize("name", ["parquet", "arrow", "parquet_compressed"])
def test_random_damage_never_raises_another_error(tmp_path, name):
    path = layouts.FORMATS[name](tmp_path, layouts.items(("a", "b"), ("train",), 3))
    file = sorted(path.rglob("*.parquet" if "parquet" in name else "*.arrow"))[0]
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        file.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
        try:
            train = open_images(path).train
        except ValueError:
            continue
        for index in range(len(train)):
            try:
                assert isinstance(train.read(index), bytes)
            except OSError:
                pass


def test_a_claim_of_many_rows_allocates_nothing(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": images(2)})
    with pyarrow.parquet.ParquetFile(path) as file:
        metadata = file.metadata
        found = columns.of_schema(file.schema_arrow, Keys(), "x")

    class Claim:
        num_rows, num_row_groups = 1 << 40, metadata.num_row_groups
        schema, num_columns, row_group = metadata.schema, metadata.num_columns, metadata.row_group

    with pytest.raises(ValueError, match="its metadata claim 1099511627776 rows in"):
        parquet._groups(by_path(str(path)), Claim(), found)


@pytest.mark.parametrize("ends", [[0, 9, 4], [5, 2, 7]])
def test_offsets_of_arrow_outside_of_their_column_are_refused(ends):
    data = np.array(ends, np.int32).tobytes()
    whole = pa.py_buffer(data + b"0123456789")
    buffers = [None, whole.slice(0, len(data)), whole.slice(len(data))]
    column = pa.Array.from_buffers(pa.binary(), 2, buffers)
    with pytest.raises(ValueError, match="the offsets of its images lie outside of their column"):
        arrow._extents(column, whole)


def test_columns_of_compressed_arrow_files_are_refused(tmp_path):
    table = layouts.table(layouts.items(("a",), ("train",)))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="its columns are compressed; save it again without"):
        open_images(tmp_path / "x.arrow")


def test_a_test_split_with_hidden_labels_is_not_tested_on(tmp_path):
    for split, labels in (("train", [0, 1]), ("test", [-1, -1]), ("validation", [1, 0])):
        write(tmp_path / f"{split}.parquet", {"image": images(2), "label": labels})
    sources = open_images(tmp_path)
    assert sources.test.name.endswith(", validation") and sources.test.labels.tolist() == [1, 0]
    assert "test: 2 images in validation (test has no labels)" in sources.notes[0]


def test_a_file_that_is_cut_off_later_has_unreadable_images(tmp_path):
    path = layouts.arrow(tmp_path / "a", layouts.items(splits=("train",)))
    train = open_images(path).train
    file = next(path.rglob("*.arrow"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OSError, match="it ends before byte"):
        train.read(len(train) - 1)


def test_headers_of_pages_that_are_damaged_are_not_plain(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(300):
        file = tmp_path / "x"
        file.write_bytes(rng.integers(0, 256, 300, np.uint8).tobytes())
        with file.open("rb") as opened, pytest.raises(pages.NotPlain):
            pages.value_extents(opened, 0, 300, 5, True)


def test_pyarrow_is_named_if_it_is_absent(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": images(2)})
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'moco-jax\[parquet\]'"):
        open_images(path)


def test_a_note_that_is_no_json_is_ignored(tmp_path):
    for note in (b"{", b"[]", b'{"info": 3}', b"[" * 100_000, json.dumps({"info": {}}).encode()):
        whole = pa.table({"image": images(2)}).replace_schema_metadata({b"huggingface": note})
        pyarrow.parquet.write_table(whole, tmp_path / "x.parquet")
        assert len(open_images(tmp_path / "x.parquet").train) == 2
