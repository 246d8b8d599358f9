"""The buckets of `tests/buckets`."""

from tests.buckets.conftest import bucket, folder, fresh

__all__ = ["bucket", "folder", "fresh"]
