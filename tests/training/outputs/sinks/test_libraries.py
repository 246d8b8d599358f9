"""Weights & Biases offline and MLflow in a folder, with the libraries themselves."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax.pretraining import pretrain
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.outputs.sinks import remote
from tests.tiny import tiny_config, tiny_sources

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 6, 4, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch):
    monkeypatch.setattr(remote, "_FLUSH", 300.0)


def log(folder, start_step: int, logged, **changes) -> None:
    """Logs a start of a run."""
    folder.mkdir(exist_ok=True)
    made = MetricsLog(folder, start_step, config=tiny_config(temperature=0.17, **changes))
    made.open()
    for step in logged:
        made.write(step, {"loss": step / 4, "top1/lr=1e+38": 2.0})
    made.images(logged[0], "views", IMAGES)
    made.histogram(logged[0], "similarity", np.arange(100.0))
    made.close()


def test_wandb_offline_continues_its_run(tmp_path, monkeypatch, caplog, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    log(folder, 0, [1, 2, 3], wandb="project")
    about = json.loads((folder / "wandb.json").read_text())
    log(folder, 2, [3, 4], wandb="project")  # step 3 was logged by a run that was killed
    assert json.loads((folder / "wandb.json").read_text()) == about
    runs = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2 and {file.stem for file in runs} == {f"run-{about['run']}"}
    for file in runs:
        content = file.read_bytes()
        for part in (b"project", b"tiny run", b"temperature", b"0.17", b"top1/lr=1e+38", b"loss"):
            assert part in content
        [image] = file.parent.glob("files/media/images/views*.png")
        np.testing.assert_array_equal(np.asarray(Image.open(image)), IMAGES[0])
    assert [r.getMessage() for r in caplog.records] == []
    assert capsys.readouterr().out.count("W&B: offline in ") == 2
    log(folder, 0, [1], wandb="project")  # a run that starts anew is another one
    assert json.loads((folder / "wandb.json").read_text())["run"] != about["run"]


def test_wandb_without_a_key_is_off(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without .netrc
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    log(tmp_path / "run", 0, [1], wandb="project")
    [message] = [r.getMessage() for r in caplog.records]
    assert message.startswith("W&B: UsageError: ") and "The run goes on without it." in message
    assert "API key" in message.replace("api_key", "API key")


@pytest.mark.parametrize("as_uri", [False, True])
def test_mlflow_in_a_folder_continues_its_run(tmp_path, monkeypatch, caplog, capsys, as_uri):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, store = tmp_path / "run", tmp_path / "store"
    target = store.as_uri() if as_uri else str(store)
    log(folder, 0, [1, 2, 3], mlflow=target)
    about = json.loads((folder / "mlflow.json").read_text())
    log(folder, 2, [3, 4], mlflow=target, steps=20)
    assert json.loads((folder / "mlflow.json").read_text()) == about
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.run_id == about["run"] and run.info.status == "FINISHED"
    assert run.info.run_name == "tiny run" and run.data.params["temperature"] == "0.17"
    history = client.get_metric_history(run.info.run_id, "loss")
    # Both starts logged step 3, and MLflow keeps both.
    assert sorted((m.step, m.value) for m in history) == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
        (3, 0.75),
        (4, 1.0),
    ]
    assert len(client.get_metric_history(run.info.run_id, "top1/lr_1e_38")) == 5
    root = store / run.info.experiment_id / run.info.run_id / "artifacts"
    assert json.loads((root / "config.json").read_text())["steps"] == 20
    found = sorted((root / "images").glob("views*.png"))
    assert len(found) == 2
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(found[0].read_bytes()))), IMAGES[0]
    )
    counts = json.loads((root / "histograms" / "similarity" / "1.json").read_text())
    assert sum(counts["counts"]) == 100 and len(counts["edges"]) == len(counts["counts"]) + 1
    assert [r.getMessage() for r in caplog.records] == []
    assert capsys.readouterr().out.count(f"MLflow: run {about['run']} of experiment tiny") == 2


def test_a_whole_run_and_its_resume(tmp_path, monkeypatch, caplog):
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, store = tmp_path / "run", tmp_path / "store"
    for steps in (2, 4):
        config = tiny_config(
            steps=steps, knn__every_epochs=0.0, wandb="a", mlflow=str(store), log_views=True
        )
        pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    [metric] = store.glob("*/*/metrics/loss")
    found = [line.split()[1:] for line in metric.read_text().splitlines()]
    assert [[float(loss), int(step)] for loss, step in found] == [
        [entry["loss"], entry["step"]] for entry in map(json.loads, lines)
    ]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    assert len(list(store.glob("*/*/artifacts/images/views*.png"))) == 1
    changed = [r.getMessage() for r in caplog.records if "changed config" in r.getMessage()]
    assert changed == ["continuing with a changed config:\n  steps: 2 in the checkpoint, 4 now"]
