"""What a new run finds at its URL on a server, where an object may have the name of a folder."""

import pytest

from moco_jax.training.remote.run import opened

pytest.importorskip("obstore")


@pytest.mark.parametrize("url", ["s3://b/x.zip", "gs://b/x.zip/"])
def test_an_object_is_no_workdir(server, url):
    server.buckets["b"]["x.zip"] = b"my images"
    with pytest.raises(ValueError, match="--workdir=.*b/x.zip is an object; it must name a folder"):
        opened(url).__enter__()
    assert server.buckets["b"] == {"x.zip": b"my images"}


@pytest.mark.parametrize("url", ["s3://b/runs/x", "gs://b/runs/x"])
def test_a_folder_that_a_console_made_is_a_workdir(server, url):
    server.buckets["b"]["runs/x/"] = b""
    with opened(url) as local:
        assert local.is_dir()
