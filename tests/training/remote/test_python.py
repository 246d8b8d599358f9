"""The functions of Python take URLs of workdirs."""

import numpy as np
import pytest

import moco_jax
from moco_jax.api import report
from tests.tiny import tiny_config

RUN = "s3://b/runs/x"


@pytest.mark.usefixtures("folder")
def test_a_run_and_its_encoder(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = moco_jax.pretrain(tiny_config(steps=2, knn__every_epochs=0.0), RUN)
    assert trained.source == f"{RUN}/checkpoints/2 (tiny, step 2)"
    assert f"saved in {RUN}/checkpoints/2" in capsys.readouterr().out
    read = moco_jax.load(RUN)
    image = np.zeros((8, 8, 3), np.uint8)
    assert read.source == trained.source and np.array_equal(read([image]), trained([image]))
    assert (bucket / "runs/x/metrics.jsonl").is_file()
    assert not (bucket / "runs/x/.lock").exists() and not (bucket / "runs/x/compiled").exists()
    assert not list(tmp_path.glob("s3*"))
    assert str(report(RUN, most_images=0).path) == "x_report.html"
