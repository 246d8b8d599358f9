"""The buckets of `tests/buckets`."""

from tests.buckets.conftest import bucket, folder, fresh, server

__all__ = ["bucket", "folder", "fresh", "server"]
