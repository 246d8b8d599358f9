"""The drift of a dictionary's keys."""

import contextlib
import json
import os
import signal
import time

import jax
import pytest

from moco_jax.data.sources.source import Sources
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.notices import Notices
from moco_jax.pretraining import pretrain
from moco_jax.pretraining.monitors.drift import DriftMonitor
from moco_jax.pretraining.run import build
from moco_jax.training import loop
from tests.tiny import tiny_config, tiny_sources


def measured(steps: int, begin: int = 0, **changes) -> list[dict[int, float]]:
    """Returns the drift before the first step and after each, as of a run that goes on."""
    # 16 pixels: with 8, batch norm sees 8 values a group and amplifies the rounding.
    size = dict(data__image_size=16, data__eval_resize=16)
    config = tiny_config(**size, **changes, drift=True, knn__every_epochs=1.0)
    if config.key_encoder == "none":
        config.views = config.views[:1]
    layout = make_layout(jax.devices()[:2])
    run = build(config, layout, Sources(tiny_sources().train, None))
    assert run.drift is not None
    state, notes = run.create(), Notices(layout).put(stop=0, bad_images=0)
    run.drift.begin(begin)
    found = [run.drift.measure(state)]
    with contextlib.closing(run.data.batches(run.order)) as batches:
        for _ in range(steps):
            state, _ = run.step(state, run.data.arrays, next(batches), notes)
            found.append(run.drift.measure(state))
    return found


def test_a_queues_newest_keys_are_todays_and_older_ones_have_drifted():
    # A queue of 2 rows; views in both directions, so that a wrong order of keys would show.
    found = measured(3, momentum=0.5, lr=0.3, symmetric=True, warmup_epochs=0.0)
    assert [list(cosines) for cosines in found] == [[], [0], [0, 1], [0, 1]]
    for cosines in found[1:]:
        assert cosines[0] == pytest.approx(1, abs=1e-5)
    # The first update of a key encoder waits for the second step.
    assert 0.2 < found[3][1] < 0.999


def test_slots_are_those_of_their_images():
    bank = dict(dictionary="memory_bank", key_encoder="none", bank__momentum=0.0)
    found = measured(4, begin=1, **bank, bank__negatives=32, lr=1e-30)
    # 96 images are 3 steps an epoch, in which each slot is written once. Another run made step 0.
    assert [list(cosines) for cosines in found] == [[], [], [0], [0, 1], [0]]
    for cosines in found:
        for value in cosines.values():
            assert value == pytest.approx(1, abs=1e-5)


def test_a_resumed_run_measures_what_an_uninterrupted_one_does(tmp_path, monkeypatch):
    """Evaluations that were cut short are made up with the same keys and values."""
    config = tiny_config(
        drift=True, knn__every_epochs=1.0, data__image_size=16, data__eval_resize=16
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def train(folder):
        pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())

    def evaluations(folder):
        log = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in log if "knn_top1" in line]

    train(whole)
    measure, calls = DriftMonitor.measure, []

    def stopped(self, state):
        calls.append(1)
        if len(calls) in (3, 5):  # in the middle of the evaluations of steps 6 and 9
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)  # Python handles it before
        return measure(self, state)

    monkeypatch.setattr(DriftMonitor, "measure", stopped)
    for _ in range(2):
        with pytest.raises(loop.Interrupted):
            train(cut)
    train(cut)
    assert [line["step"] for line in evaluations(cut)] == [0, 3, 6, 9, 10]
    assert evaluations(cut) == evaluations(whole)
    assert any(name.endswith("age_3") for name in evaluations(cut)[-1])
    # Views of another seed: older keys are not compared.
    monkeypatch.setattr(DriftMonitor, "measure", measure)
    config.seed, config.steps = 1, 12
    train(cut)
    ages = [name for name in evaluations(cut)[-1] if name.startswith("key_cosine")]
    assert ages == ["key_cosine/age_0", "key_cosine/age_1"]
