"""Runs of two processes over a bucket: the losses of a disk, also after a resume."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from moco_jax.data.prepare import shards as conversion
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.source import Sources
from tests.buckets.server import serving, settings
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.tiny import tiny_sources

pytest.importorskip("obstore")
STEPS = 6
CONFIG = """
    from tests.tiny import tiny_config

    def get_config():
        return tiny_config(
            batch_size=64, queue_size=256, data__image_size=16, data__eval_resize=16,
            data__source="images", data__resident_megabytes=0, data__canvas=16,
            data__cache_gigabytes=0.1, checkpoint_every=3, knn__every_epochs=0.0,
        )
"""


@pytest.fixture
def run(repository, tmp_path):
    """Returns a function that trains in two processes on images at a path, to a step."""
    (tmp_path / "tiny.py").write_text(textwrap.dedent(CONFIG))

    def run(path, workdir, steps):
        coordinator = f"--coordinator=localhost:{free_port()}"
        command = [
            *(sys.executable, "-m", "moco_jax.main", f"--config={tmp_path / 'tiny.py'}"),
            *(f"--config.data.path={path}", f"--config.steps={steps}", f"--workdir={workdir}"),
            *(coordinator, "--processes=2", "--join_timeout=600"),
        ]
        environment = {"PYTHONPATH": str(repository), "XLA_FLAGS": devices_flags(4)}
        running = [
            subprocess.Popen([*command, f"--process={i}"], env=os.environ | environment)
            for i in range(2)
        ]
        try:
            assert [process.wait(900) for process in running] == [0, 0]
        finally:
            for process in running:
                process.kill()
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return run


@pytest.mark.slow  # eight starts of Python
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_losses_are_those_of_the_disk(run, bucket, tmp_path, monkeypatch, scheme):
    conversion.convert(
        Sources(tiny_sources(240).train, None), bucket / "shards", Encoding(),
        images_per_shard=50, max_bad_fraction=0.0, threads=2,
    )  # fmt: skip
    files = [*(bucket / "shards").glob("*.tar"), bucket / "shards/shards.json"]
    expected = run(bucket / "shards", tmp_path / "disk", STEPS)
    assert list(expected) == list(range(1, STEPS + 1))
    with serving({"b": {f"shards/{path.name}": path.read_bytes() for path in files}}) as server:
        for key, value in settings(server.url).items():
            monkeypatch.setenv(key, value)
        run(f"{scheme}://b/shards", tmp_path / "bucket", STEPS // 2)
        found = run(f"{scheme}://b/shards", tmp_path / "bucket", STEPS)
        assert found == expected
        images = sum("GET" in request for request in server.requests)
        again = run(f"{scheme}://b/shards", tmp_path / "again", STEPS)
    assert again == expected
    assert sum("GET" in request for request in server.requests) - images < 100  # the rest is kept
