"""Buckets of tests: a folder in their place, or a server on this machine."""

import pytest

from moco_jax.buckets import objects
from tests.buckets.memory import Folder
from tests.buckets.server import serving, settings


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path_factory):
    """No bucket is known yet, and the cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    objects.bucket.cache_clear()
    yield
    objects.bucket.cache_clear()


@pytest.fixture
def bucket(tmp_path):
    """The folder whose files are the objects of every bucket."""
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


@pytest.fixture
def folder(bucket, monkeypatch):
    """A client of these objects."""
    made = Folder(bucket)
    monkeypatch.setattr(objects, "connect", made.client)
    return made


@pytest.fixture
def server(monkeypatch):
    """Serves the bucket b, which is empty, on this machine; both schemes lead to it."""
    with serving({"b": {}}) as made:
        for key, value in settings(made.url).items():
            monkeypatch.setenv(key, value)
        yield made
