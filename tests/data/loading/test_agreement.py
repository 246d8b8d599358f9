"""The comparison of data sets over processes; tests/parallel runs it in real processes."""

import dataclasses

import jax
import numpy as np
import pytest

from moco_jax.data.loading.agreement import check_same_images
from moco_jax.data.sources.source import array_source
from moco_jax.parallel import cluster


@pytest.fixture
def compared(monkeypatch):
    """Returns a function that returns what a process compares with the others."""
    values = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cluster, "check_alike", lambda what, value: values.append((what, value)))

    def compared(source, data=(), test=None):
        check_same_images(source, data, test)
        return values.pop()

    return compared


def test_names_labels_kind_length_and_test_set_are_compared(compared):
    source = array_source(np.zeros((2, 4, 4), np.uint8), [0, 1], "images")
    what, value = compared(source)
    assert what == "data set images" and compared(source) == (what, value)
    different = [
        compared(dataclasses.replace(source, names=["a", "b"])),
        compared(dataclasses.replace(source, read=lambda i: b"other")),
        compared(dataclasses.replace(source, labels=np.int32([1, 0]))),
        compared(source, []),
        compared(source, (0,)),
        compared(source, (), object()),
    ]
    assert len({value, *(value for _, value in different)}) == 7


def test_the_path_of_the_images_may_differ(compared):
    source = array_source(np.zeros((2, 4, 4), np.uint8), [0, 1], "images")
    here, there = (
        dataclasses.replace(source, names=[f"{place}/a/1.jpg", f"{place}/b/2.jpg"])
        for place in ("/data/imagenet", "/scratch/job7")
    )
    assert compared(here) == compared(there)
