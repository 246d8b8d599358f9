"""Loggers that hang or fail: the run, its metrics and its state are the same as without them."""

import json

import jax

from moco_jax.pretraining import pretrain
from moco_jax.training.integrity import checksums
from moco_jax.training.outputs.sinks import remote
from tests.tiny import tiny_config, tiny_sources

LIBRARIES = {
    "wandb": "import time\ntime.sleep(10000)\n",
    "mlflow": "raise RuntimeError('no server')\n",
}
SPEED = {"images_per_second", "seconds_per_step", "data_wait_percent"}


def test_a_run_is_the_same_with_loggers_that_hang_and_fail(tmp_path, monkeypatch, caplog):
    library = tmp_path / "library"
    library.mkdir()
    for name, code in LIBRARIES.items():
        (library / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.setattr(remote, "_FLUSH", 1.0)
    found = []
    for name, targets in (("plain", {}), ("logged", {"wandb": "a", "mlflow": "b"})):
        folder = tmp_path / name
        config = tiny_config(steps=3, knn__every_epochs=0.0, **targets)
        state = pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        metrics = [{k: x for k, x in line.items() if k not in SPEED} for line in lines]
        found.append((checksums.summarize(state).arrays, metrics))
    assert found[0] == found[1] and len(found[0][1]) == 3
    warnings = [r.getMessage() for r in caplog.records if r.getMessage()[:3] in ("W&B", "MLf")]
    assert sorted(warnings) == [
        "MLflow: RuntimeError: no server. The run goes on without it.",
        "W&B: not everything was sent in 1 s; what is missing is in metrics.jsonl",
    ]
