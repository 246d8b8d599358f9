"""Which library makes the requests to a URL: obstore where it can, else fsspec."""

from moco_jax.buckets import client, fsspec_client
from moco_jax.buckets.client import Client

_BY_OBSTORE = (
    *("s3", "s3a", "gs"),
    *("az", "azure", "adl", "abfs", "abfss"),
    *("http", "https"),
)


def connect(root: str) -> Client:
    """Returns the client of a bucket or a server, such as 's3://bucket' or 'https://host'.

    Raises:
      ValueError: if the scheme is unknown, or a package for it is not installed.
    """
    by_obstore = root.partition("://")[0].lower() in _BY_OBSTORE
    return (client if by_obstore else fsspec_client).connect(root)
