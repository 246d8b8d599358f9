"""Splits are found by their names, in any case and place, and never trained on by a guess."""

import csv
import io
import pathlib
import tarfile
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_jax.data.sources import split_names
from moco_jax.data.sources.source import Source
from tests.data.sources.stores import open_images
from tests.data.sources.tables import layouts
from tests.data.sources.tables.layouts import Item

# As docs/data.md has them, and what data sets put around them.
_TRAIN = ("train", "training", "trn", "trainset", "TrainingSet", "train_set", "trainval")
_TEST = ("test", "testing", "tst", "testset", "TestData", "test_set")
_VAL = ("val", "valid", "validation", "eval", "dev", "holdout", "ValSet")
_AROUND = (("", ""), ("", "2017"), ("", "_data"), ("seg_", ""), ("ilsvrc-", ""), ("", " images"))
_CASES = (str, str.upper, str.lower, str.title, str.capitalize, str.swapcase)


def _mixed(name: str, upper: list[bool]) -> str:
    return "".join(c.upper() if up else c.lower() for c, up in zip(name, upper, strict=True))


@st.composite
def spelled(draw: st.DrawFn, words: tuple[str, ...]) -> str:
    """Returns the name of a split as someone may write it."""
    start, end = draw(st.sampled_from(_AROUND))
    word = draw(st.sampled_from(words))
    if draw(st.booleans()):
        return start + draw(st.sampled_from(_CASES))(word) + end
    upper = st.lists(st.booleans(), min_size=len(word), max_size=len(word))
    return start + _mixed(word, draw(upper)) + end


@st.composite
def two_splits(draw: st.DrawFn) -> tuple[str, str, list[Item]]:
    """Returns the names of a train and a test split, and their images in any order."""
    train, test = draw(spelled(_TRAIN)), draw(spelled(_TEST + _VAL))
    items = [
        Item(split, label, f"{i}.jpg", f"{split}/{label}/{i}.jpg".encode())
        for split in (train, test)
        for label in ("bee", "cat")
        for i in range(2)
    ]
    return train, test, draw(st.permutations(items))


def path_of(item: Item) -> str:
    return f"{item.split}/{item.label}/{item.name}"


def folder(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    return layouts.folder(root, items)


def folder_deeper(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    layouts.folder(root / "ILSVRC/Data", items)
    return root


def shards_by_name(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    for split in layouts.splits(items):
        _shard(root / f"{split}-000.tar", layouts.of_split(items, split))
    return root


def shards_in_folders(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    for split in layouts.splits(items):
        (root / split).mkdir()
        _shard(root / split / "000.tar", layouts.of_split(items, split))
    return root


def _shard(path: pathlib.Path, items: list[Item]) -> None:
    with tarfile.open(path, "w") as archive:
        for item in items:
            member = tarfile.TarInfo(f"{item.label}/{item.name}")
            member.size = len(item.data)
            archive.addfile(member, io.BytesIO(item.data))


def parquet_in_folders(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    for split in layouts.splits(items):
        (root / split).mkdir()
        table = layouts.table(layouts.of_split(items, split))
        layouts.pyarrow.parquet.write_table(table, root / split / "0000.parquet")
    return root


def list_with_column(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    layouts.folder(root / "folder", items)
    return layouts.csv_list(root / "list.csv", items, "folder")


def list_of_folders(root: pathlib.Path, items: list[Item]) -> pathlib.Path:
    layouts.folder(root, items)
    with (root / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([path_of(item), item.label] for item in items)
    return root / "list.csv"


PLACES = {
    "folder": folder,
    "folders below": folder_deeper,
    "names of shards": shards_by_name,
    "folders of shards": shards_in_folders,
    "names of parquet": layouts.parquet,
    "folders of parquet": parquet_in_folders,
    "arrow": layouts.arrow,
    "column of a list": list_with_column,
    "paths of a list": list_of_folders,
    "metadata": layouts.flat_with_metadata,
}


def seen(source: Source | None) -> list[tuple[bytes, str]]:
    assert source is not None and source.labels is not None
    labels = [source.class_names[label] for label in source.labels]
    return sorted((source.read(i), label) for i, label in enumerate(labels))


@pytest.mark.parametrize("place", PLACES)
@given(drawn=two_splits())
def test_splits_in_any_spelling(place, drawn):
    *names, items = drawn
    with tempfile.TemporaryDirectory() as made:
        sources = open_images(PLACES[place](pathlib.Path(made), items))
        for name, source in zip(names, (sources.train, sources.test), strict=True):
            own = layouts.of_split(items, name)
            assert seen(source) == sorted((item.data, item.label) for item in own)


@given(spelled(_TRAIN), spelled(_TEST), spelled(_VAL))
def test_roles(train, test, val):
    assert [split_names.role(name) for name in (train, test, val)] == ["train", "test", "val"]
