"""Buckets of tests: a folder in their place, or a server on this machine."""

import pytest

from moco_jax.data.sources.storage import buckets
from tests.data.sources.storage.memory import Folder


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path_factory):
    """No bucket is known yet, and the cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    buckets.bucket.cache_clear()
    yield
    buckets.bucket.cache_clear()


@pytest.fixture
def objects(tmp_path):
    """The folder whose files are the objects of every bucket."""
    (tmp_path / "objects").mkdir()
    return tmp_path / "objects"


@pytest.fixture
def folder(objects, monkeypatch):
    """A client of these objects."""
    made = Folder(objects)
    monkeypatch.setattr(buckets, "connect", made.client)
    return made
