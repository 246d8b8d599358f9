"""Runs and weights in buckets, read through the cache folder."""

import json
import os
import pathlib
import shutil
import time

import pytest

from moco_jax.buckets import objects
from moco_jax.encoders import pretrained
from moco_jax.pages import writing
from moco_jax.pages.record import read
from moco_jax.training.remote import copies
from moco_jax.training.remote.reading import fetched
from tests.encoder_files import write_encoder
from tests.tiny import tiny_config

RUN = "s3://b/runs/x"
LAST = "_CHECKPOINT_METADATA"

pytestmark = pytest.mark.usefixtures("folder")


def write(root: pathlib.Path, *names: str, content: str = "1") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def checkpoint(root: pathlib.Path, step: int, last: bool = True) -> None:
    names = ["about/metadata", "state/d/x", *[LAST] * last]
    write(root, *(f"checkpoints/{step}/{name}" for name in names))


def files(local: pathlib.Path) -> set[str]:
    return {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}


def reads(folder) -> list[str]:
    found = [argument for name, argument in folder.requests if name == "read"]
    folder.requests.clear()
    return found


@pytest.fixture
def run(bucket):
    """A run that is at step 8, and was killed while it wrote the checkpoint of step 12."""
    root = bucket / "runs/x"
    write(root, "config.json", "metrics.jsonl", "features.npz", "tensorboard/x", "compiled/x")
    checkpoint(root, 4)
    checkpoint(root, 8)
    checkpoint(root, 12, last=False)
    return root


def test_a_path_is_itself(tmp_path):
    assert fetched(tmp_path) == tmp_path and fetched("~") == pathlib.Path.home()


def test_the_newest_checkpoint_and_the_records_of_a_run(run, folder):
    local = fetched(f"{RUN}/")
    step = {f"checkpoints/8/{name}" for name in ("about/metadata", "state/d/x", LAST)}
    assert files(local) == {"config.json", "metrics.jsonl", *step}
    assert local.name == "x" and copies.named(local / "checkpoints/8") == f"{RUN}/checkpoints/8"


def test_a_second_read_copies_what_changed(run, folder):
    fetched(RUN)
    assert len(reads(folder)) == 5
    fetched(RUN)
    assert not reads(folder)
    write(run, "metrics.jsonl", content="2")  # of the same size
    checkpoint(run, 12)
    local = fetched(RUN)
    assert len(reads(folder)) == 4 and (local / "metrics.jsonl").read_text() == "2"
    (local / "metrics.jsonl").write_text("somebody's")
    fetched(RUN)
    assert reads(folder) == ["runs/x/metrics.jsonl"]


def test_older_checkpoints_leave_the_cache_after_a_day(run, folder):
    local = fetched(RUN)
    checkpoint(run, 12)
    fetched(RUN)
    assert {path.name for path in (local / "checkpoints").iterdir()} == {"8", "12"}
    os.utime(local / "checkpoints/8", (0, time.time() - 90000))
    fetched(RUN)
    assert {path.name for path in (local / "checkpoints").iterdir()} == {"12"}


def test_a_copy_that_is_not_asked_for_leaves_the_cache_after_a_month(run, bucket):
    write(bucket / "hf", "config.json")
    unused, used = fetched("s3://b/hf"), fetched(RUN)
    for local, days in ((unused, 31), (used, 29)):
        os.utime(local.parent, (0, time.time() - days * 86400))
    write(bucket / "other", "config.json")
    fetched("s3://b/other")
    assert not unused.parent.exists() and files(used)
    os.utime(used.parent, (0, time.time() - 31 * 86400))
    fetched(RUN)
    assert files(used)


def test_what_is_no_longer_there_leaves_the_copy(run, bucket):
    local = fetched(RUN)
    assert {path.name for path in (local / "checkpoints").iterdir()} == {"8"}
    shutil.rmtree(run)
    write(run, "metrics.jsonl")
    checkpoint(run, 4)  # of another run
    fetched(RUN)
    step = {f"checkpoints/4/{name}" for name in ("about/metadata", "state/d/x", LAST)}
    assert files(local) == {"metrics.jsonl", *step}
    assert {path.name for path in (local / "checkpoints").iterdir()} == {"4"}
    write(bucket / "hf", "config.json", "pytorch_model.bin")
    fetched("s3://b/hf")
    (bucket / "hf/pytorch_model.bin").rename(bucket / "hf/model.safetensors")
    assert files(fetched("s3://b/hf")) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("content", ["", '{"x/con', "[]"])
def test_a_record_that_is_cut_short(run, folder, content):
    local = fetched(RUN)
    reads(folder)
    (local.parent / "versions.json").write_text(content)
    fetched(RUN)
    assert len(reads(folder)) == 5


def test_a_named_checkpoint(run):
    local = fetched(f"{RUN}/checkpoints/4")
    assert local.name == "4" and files(local) == {"about/metadata", "state/d/x", LAST}


def test_a_folder_of_weights(bucket):
    write(bucket / "hf", "config.json", "model.safetensors", "more/x")
    assert files(fetched("s3://b/hf")) == {"config.json", "model.safetensors"}


def test_a_run_that_changes_meanwhile_is_listed_again(run, folder, monkeypatch):
    ask, asked = folder._ask, []

    def change(name, argument):
        asked.append(name)
        if asked.count("read") == 1 and name == "read":
            write(run, "metrics.jsonl", content=f"{time.time()}")
        ask(name, argument)

    monkeypatch.setattr(folder, "_ask", change)
    (run / "config.json").unlink()
    local = fetched(RUN)
    assert (local / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_what_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match="no object and no folder s3://b/absent"):
        fetched("s3://b/absent")


@pytest.mark.parametrize("path", ["s3:/b/x", "s3//b/x", "s3:b/x"])
def test_a_mistyped_url(folder, path):
    with pytest.raises(FileNotFoundError, match=f"folder {path}; did you mean s3://b/x"):
        fetched(path)
    with pytest.raises(ValueError, match="the path=s3:// names no bucket; allowed: s3://bucket/x"):
        fetched("s3://")


def test_errors_do_not_name_the_images(folder):
    folder.problem = objects.Kind.NO_BUCKET
    with pytest.raises(objects.BucketError, match="there is no bucket s3://b: correct the path$"):
        fetched(RUN)


def test_an_encoder_file(bucket, folder, tmp_path):
    made = tmp_path / "e.safetensors"
    write_encoder(made, tiny_config())
    (bucket / "e.safetensors").write_bytes(made.read_bytes())
    encoder = pretrained.read("s3://b/e.safetensors")
    assert encoder.source == pretrained.read(made).source
    reads(folder)
    pretrained.read("s3://b/e.safetensors")
    assert not reads(folder)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        write(bucket / "x", "y")
        pretrained.read("s3://b/x")


def test_the_record_of_a_run_has_its_name(run):
    (run / "config.json").write_text(json.dumps({"name": "tiny"}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (record,) = read([fetched(RUN)])
    assert record.name == "x" and record.lines == [{"step": 1, "loss": 2.0}]
    assert writing.place(RUN) == pathlib.Path("x_report.html")
    assert writing.place("runs/x") == pathlib.Path("runs/x/report.html")


def test_a_cache_folder_that_can_not_be_written(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="can't write a local copy in .*/file/.* set XDG_CACHE_HOME"):
        fetched(RUN)
