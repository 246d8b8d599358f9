"""Runs of real processes, with images and workdir in an emulated S3 or Google Cloud Storage."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from moco_jax.training.integrity import checkpoint_files
from tests.buckets.server import Server, serving, settings
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.tiny import tiny_sources

pytest.importorskip("obstore")
pytestmark = pytest.mark.slow

PATIENCE = 600  # seconds: many times what a slow machine takes, since only a hang may fail
STEPS = 10
TIMES = ("images_per_second", "seconds_per_step", "data_wait_percent")  # they differ in each run
# SLOW: seconds that each step takes longer. HOLD: the step after which the run waits for the file
# GO, or to be killed. BROKEN: a save that fails.
CONFIG = """
    import os, time
    import orbax.checkpoint as ocp
    from moco_jax.training.outputs import metrics_log
    from tests.tiny import tiny_config

    write, save = metrics_log.MetricsLog.write, ocp.CheckpointManager.save

    def slow_write(self, step, scalars):
        write(self, step, scalars)
        time.sleep(float(os.environ.get("SLOW", "0")))
        while "loss" in scalars and step == int(os.environ.get("HOLD", "0")):
            if os.path.exists(os.environ.get("GO", "")):
                break
            time.sleep(0.1)

    def broken_save(self, step, **options):
        if step == int(os.environ.get("BROKEN", "0")):
            raise OSError("no space left")
        return save(self, step, **options)

    metrics_log.MetricsLog.write = slow_write
    ocp.CheckpointManager.save = broken_save

    def get_config():
        return tiny_config(
            batch_size=64, queue_size=256, lr=0.003, lr_batch=256, data__image_size=16,
            data__eval_resize=16, data__source="images", data__path={images!r},
            knn__every_epochs=2.0,
        )
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """Returns a zip of images in a folder for each class."""
    file = tmp_path_factory.mktemp("images") / "images.zip"
    train = tiny_sources(240).train
    assert train.labels is not None
    with zipfile.ZipFile(file, "w") as archive:
        for i, label in enumerate(train.labels):
            content = io.BytesIO()
            Image.fromarray(np.asarray(train.read(i))).save(content, "PNG")
            archive.writestr(f"{label}/{i}.png", content.getvalue())
    return file


@pytest.fixture
def server(images):
    with serving({"b": {"images.zip": images.read_bytes()}}) as made:
        yield made


class Runs:
    """Starts runs below a folder; each machine has a cache folder of its own."""

    def __init__(self, folder: pathlib.Path, repository: pathlib.Path, server: Server):
        self.folder, self._repository, self._server = folder, repository, server
        self.started: list[subprocess.Popen] = []

    def start(
        self, workdir, images, *arguments, machine="one", processes=1, devices=8, **environment
    ) -> list[subprocess.Popen]:
        config, port, running = self.folder / "tiny.py", free_port(), []
        config.write_text(textwrap.dedent(CONFIG).format(images=str(images)))
        for i in range(processes):
            joining = (f"coordinator=localhost:{port}", f"processes={processes}", f"process={i}")
            joining = [f"--{flag}" for flag in joining] if processes > 1 else []
            command = [sys.executable, "-m", "moco_jax.main", f"--config={config}", "--noreport"]
            with open(self.folder / f"{i}.out", "a") as out:
                running.append(
                    subprocess.Popen(
                        [*command, f"--workdir={workdir}", *joining, *arguments],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=os.environ
                        | settings(self._server.url)
                        | environment
                        | {
                            "PYTHONPATH": str(self._repository),
                            "XDG_CACHE_HOME": str(self.folder / machine),
                            "XLA_FLAGS": devices_flags(devices // processes),
                        },
                    )
                )
        self.started += running
        return running

    def ends(self, *arguments, **options) -> list[int]:
        return [process.wait(PATIENCE) for process in self.start(*arguments, **options)]

    def output(self, process: int = 0) -> str:
        return (self.folder / f"{process}.out").read_text()


@pytest.fixture
def runs(tmp_path, repository, server):
    made = Runs(tmp_path, repository, server)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def keys(server: Server, run: str) -> dict[str, bytes]:
    objects = list(server.buckets["b"].items())  # the run writes some meanwhile
    return {key.removeprefix(run): data for key, data in objects if key.startswith(run)}


def wait_for(condition, running, said=lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert all(process.poll() is None for process in running), f"ended too early: {said()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_saved(server: Server, run: str, step: int) -> bool:
    return f"checkpoints/{step}/_CHECKPOINT_METADATA" in keys(server, run)


def result(folder: pathlib.Path) -> tuple[dict, list[dict]]:
    """Returns the checksums of the last arrays, and the metrics without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [{key: x for key, x in line.items() if key not in TIMES} for line in lines]
    about = checkpoint_files.read_about(folder / "checkpoints" / str(STEPS))
    checkpoint_files.read_arrays(folder / "checkpoints" / str(STEPS), about)
    return about["arrays"], found


def result_in_bucket(server: Server, run: str, folder: pathlib.Path) -> tuple[dict, list[dict]]:
    for name, data in keys(server, run).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return result(folder)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_killed_run_ends_as_an_undisturbed_local_one(runs, server, images, tmp_path, scheme):
    assert runs.ends(tmp_path / "local", images, devices=1) == [0]
    url, data = f"{scheme}://b/runs/a", f"{scheme}://b/images.zip"
    killed = runs.start(url, data, devices=1, HOLD="5")
    wait_for(lambda: is_saved(server, "runs/a/", 4), killed)
    killed[0].kill()
    killed[0].wait()
    # On the same machine; the server stops in the middle.
    stopped = runs.start(url, data, devices=1, SLOW="1", HOLD="9")
    wait_for(lambda: "\nstep " in runs.output().partition("\nresumed at")[2], stopped)
    server.stop()
    wait_for(lambda: f"{url} can't be written" in runs.output(), stopped)
    server.start()
    again = f"{url} is written again"
    wait_for(lambda: is_saved(server, "runs/a/", 8) and again in runs.output(), stopped)
    stopped[0].kill()
    stopped[0].wait()
    assert runs.ends(url, data, machine="two", devices=1) == [0], runs.output()
    found = result_in_bucket(server, "runs/a/", tmp_path / "found")
    assert found == result(tmp_path / "local")
    output = runs.output()
    assert "going on with the local copy" in output
    assert f"resumed at step 8 of 10 from {url}" in output
    assert output.count(f"{url} can't be written") == output.count(again) == 1
    assert f"saved in {url}/checkpoints/10" in output and f"--encoder={url}" in output
    assert ".lock" not in keys(server, "runs/a/")
    assert not any(path.is_dir() for path in (tmp_path / "two/moco_jax/runs").iterdir())


def test_signals_and_errors(runs, server, images, tmp_path):
    url, go = "s3://b/runs/a", tmp_path / "go"
    running = runs.start(url, images, devices=1, HOLD="2", GO=str(go))
    wait_for(lambda: b'"step": 2' in keys(server, "runs/a/").get("metrics.jsonl", b""), running)
    assert runs.ends(url, images, devices=1) == [2]  # on the same machine
    assert runs.ends(url, images, machine="two", devices=1) == [2]
    assert runs.output().count("error: another process is running in s3://b/runs/a") == 2
    running[0].send_signal(signal.SIGTERM)
    go.touch()
    assert running[0].wait(PATIENCE) == 75
    assert "saved in s3://b/runs/a/checkpoints/" in runs.output()
    assert ".lock" not in keys(server, "runs/a/")
    server.read_only = True
    assert runs.ends(url, images, devices=1) == [2]
    assert "--workdir=s3://b/runs/a: permission denied for s3://b/runs/a/.lock" in runs.output()
    server.read_only = False
    assert runs.ends("gs://absent/runs/a", images, devices=1) == [2]
    assert "there is no bucket gs://absent: correct --workdir" in runs.output()
    # Both are errors at once.
    assert "waiting for it" not in runs.output() and "Traceback" not in runs.output()
    running = runs.start(url, images, devices=1, SLOW="1")
    wait_for(lambda: "resumed at step" in runs.output(), running)
    server.read_only = True  # until the end
    assert running[0].wait(PATIENCE) == 1
    assert "error: s3://b/runs/a does not have the last state of the run: perm" in runs.output()
    server.read_only = False
    assert runs.ends(url, images, devices=1) == [0] and is_saved(server, "runs/a/", 10)


def test_two_processes(runs, server, images, tmp_path):
    """Parameters are split too, so that no process has the whole state."""
    split = "--config.mesh.fsdp=2"
    assert runs.ends(tmp_path / "local", images, split, processes=2) == [0, 0]
    killed = runs.start("s3://b/runs/a", images, split, processes=2, HOLD="5")
    wait_for(lambda: is_saved(server, "runs/a/", 4), killed)
    killed[0].kill()
    assert killed[1].wait(PATIENCE) not in (0, None)
    options = {"machine": "two", "processes": 2, "BROKEN": "6"}
    assert runs.ends("s3://b/runs/a", images, split, **options) == [0, 0], runs.output()
    found = result_in_bucket(server, "runs/a/", tmp_path / "found")
    assert found == result(tmp_path / "local")
    assert "step 6 could not be saved" in runs.output() and "no space left" in runs.output()
    options = {"HOLD": "2", "GO": str(tmp_path / "go")}
    stopped = runs.start("s3://b/runs/c", images, split, processes=2, **options)
    wait_for(lambda: b'"step": 2' in keys(server, "runs/c/").get("metrics.jsonl", b""), stopped)
    stopped[1].send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert [process.wait(PATIENCE) for process in stopped] == [75, 75]
    server.read_only = True
    refused = runs.ends("s3://b/runs/d", images, split, processes=2)
    assert refused == [2, 2] and "permission denied for s3://b/runs/d/.lock" in runs.output(1)
