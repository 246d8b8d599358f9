"""Any list, shard or metadata is a data set, or an error that names what to change."""

import csv
import io
import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_jax.data.sources.source import Sources
from moco_jax.data.sources.tables import list_file
from tests.data.sources.properties.data_sets import names
from tests.data.sources.shards.writing import write_shard
from tests.data.sources.stores import open_images, write_folder

_IMAGES = ("train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "4.jpg", "é 5.PNG")
_CELLS = st.one_of(
    st.sampled_from(_IMAGES),
    st.sampled_from(("path", "label", "split", "file_name", "image", "train", "test", "val", "")),
    st.sampled_from(("0", "1", "-1", "/", "..", "./4.jpg", "../x.jpg", "a,b", " ")),
    names(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
)
_ROWS = st.lists(st.lists(_CELLS, min_size=1, max_size=4), max_size=8)
_VALUES = _CELLS | st.none() | st.integers() | st.floats() | st.booleans() | st.lists(_CELLS)
_OBJECTS = st.lists(st.dictionaries(_CELLS, _VALUES, max_size=4) | _VALUES, max_size=8)


def check(path: pathlib.Path) -> None:
    """Fails unless a path opens as a data set, or raises an error that names it and a key."""
    try:
        sources = open_images(path, max_bad_fraction=1.0)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert len(sources.train)
    _check_whole(sources)


def _check_whole(sources: Sources) -> None:
    for source in filter(None, (sources.train, sources.test)):
        count = len(source.class_names)
        assert len(source.names[:]) == len(source)
        if source.labels is not None:
            assert len(source.labels) == len(source) and count
            assert (source.labels >= -1).all() and (source.labels < count).all()
        for index in range(len(source)):
            try:
                assert source.read(index)
            except OSError as error:  # absent files are unreadable images
                assert str(error)


def _write(root: pathlib.Path, name: str, text: str | bytes) -> pathlib.Path:
    write_folder(root, _IMAGES)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (root / name).write_bytes(data)
    return root / name


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt", "x.jsonl"])
@given(text=st.text() | st.binary())
def test_any_text(name, text):
    with tempfile.TemporaryDirectory() as made:
        check(_write(pathlib.Path(made), name, text))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt", "metadata.csv"])
@given(rows=_ROWS)
def test_any_cells(name, rows):
    with tempfile.TemporaryDirectory() as made:
        path = pathlib.Path(made) / name
        write_folder(path.parent, _IMAGES)
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if name.endswith("csv") else "\t").writerows(rows)
        check(path.parent if name.startswith("metadata") else path)


@pytest.mark.parametrize("name", ["x.jsonl", "metadata.jsonl"])
@given(objects=_OBJECTS)
def test_any_objects(name, objects):
    with tempfile.TemporaryDirectory() as made:
        path = _write(pathlib.Path(made), name, "\n".join(map(json.dumps, objects)))
        check(path.parent if name.startswith("metadata") else path)


@given(
    st.lists(
        st.dictionaries(
            names(bytes_too=True).map(lambda name: name[:20])
            | st.sampled_from(
                ("1.jpg", "1.cls", "2.jpg", "2.cls", "1.json", "2.json", "1.seg.png")
            ),
            st.binary(min_size=1, max_size=9)
            | _VALUES.map(lambda x: json.dumps({"label": x}).encode()),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(("a-{}.tar", "train-{}.tar", "a-{}-train.tar")),
)
def test_any_members_of_shards(shards, name):
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made) / "shards"
        for number, members in enumerate(shards):
            write_shard(root / name.format(number), members)
        check(root)


@given(st.text("ab\r\n\x85\u2028é", max_size=60), st.integers(1, 9))
@settings(max_examples=20 * settings().max_examples)
def test_lines_do_not_depend_on_the_blocks_that_are_read(text, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_file, "_BLOCK", block)
        file = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
        assert list(list_file._lines(file, "x.csv")) == list(io.StringIO(text, newline=""))


@given(st.lists(st.integers(0, 5), min_size=4, max_size=20), st.randoms(use_true_random=False))
def test_labels_do_not_depend_on_the_order_of_the_rows(labels, random):
    rows = [(f"train/a/{i:02}.jpg", f"class {label}") for i, label in enumerate(labels)]
    shuffled = random.sample(rows, len(rows))
    found = []
    for number, order in enumerate((rows, shuffled)):
        with tempfile.TemporaryDirectory() as made:
            path = pathlib.Path(made) / f"{number}.csv"
            path.write_text("".join(f"{path},{label}\n" for path, label in order))
            train = open_images(path).train
            found.append(
                (train.labels, train.class_names, [x.rpartition("/")[2] for x in train.names])
            )
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
