"""The same images in any format are the same data set, whatever their names and their order."""

import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import assume, given

from moco_jax.data.sources.source import Source, fingerprint
from tests.data.sources.properties import layouts
from tests.data.sources.properties.data_sets import data_sets
from tests.data.sources.stores import open_images

# Their images keep their names below the folder of all.
_SAME_NAMES = ("tar", "tar of GNU", "zip", "parquet", "arrow", "csv", "tsv", "jsonl")


def seen(source: Source) -> list[tuple[bytes, str]]:
    """Returns the bytes and the class of all images, in order."""
    assert source.labels is not None and source.labels.dtype == np.int32
    images = [source.read(index) for index in range(len(source))]
    return [(x, source.class_names[y]) for x, y in zip(images, source.labels, strict=True)]


def check_same(form: str, items: layouts.Items) -> None:
    """Fails unless a format gives the images, their order and the classes of a folder."""
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        expected = open_images(layouts.folder(root / "expected", items))
        found = open_images(layouts.FORMATS[form](root, items))
        assert found.test is not None and expected.test is not None
        numbers = all(name.isascii() and name.isdigit() for name in expected.train.class_names)
        for own, other in ((found.train, expected.train), (found.test, expected.test)):
            assert seen(own) == seen(other)
            assert sorted(own.class_names) == sorted(other.class_names)
            if not numbers:  # a column of numbers is sorted by value
                assert own.class_names == other.class_names
                assert own.labels.tolist() == other.labels.tolist()
            if form in _SAME_NAMES and not numbers:
                assert fingerprint(own) == fingerprint(other)
        assert found.train.class_names == found.test.class_names


@pytest.mark.parametrize("form", [x for x in layouts.FORMATS if x not in layouts.WITHOUT_SPACES])
@given(items=data_sets())
def test_a_format_is_the_folder_of_its_images(form, items):
    check_same(form, items)


@pytest.mark.parametrize("form", layouts.WITHOUT_SPACES)
@given(items=data_sets(spaces=False))
def test_a_format_without_spaces_around_names(form, items):
    if form == "shards with names":  # numbers are no names there, but labels from 0
        assume(not all(item.label.isdigit() for item in items))
    check_same(form, items)


@pytest.mark.parametrize("form", layouts.OF_BYTES)
@given(items=data_sets(bytes_too=True))
def test_names_that_are_no_text(form, items):
    check_same(form, items)
