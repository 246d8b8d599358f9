"""Supervised runs: logging, resuming, errors, and weights that must not change."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from moco_jax.config import leave_to_data
from moco_jax.data.sources.source import Sources, array_source
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain
from moco_jax.supervised import evaluate, step
from moco_jax.supervised.labels import labelled
from moco_jax.supervised.run import build
from moco_jax.supervised.start import begin
from moco_jax.training import loop
from moco_jax.training.checkpoints import Checkpoints
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.supervised.tiny import encoder_variables, task_config, write_encoder
from tests.tiny import tiny_config, tiny_sources

ONE = jax.devices()[:1]
LARS = {"feature_norm": True, "optimizer": "lars"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.safetensors")


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def run(config, folder, devices=ONE, sources=None):
    sources = sources or tiny_sources()
    return evaluate.evaluate(config, folder, devices=devices, sources=sources)


def state_of(config, folder, monkeypatch):
    """Runs the task; returns the state after the last step."""
    finished, train = [], loop.train

    def noted(*args, **options):
        finished.append(train(*args, **options))
        return finished[-1]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", noted)
        run(config, folder)
    return finished[-1].state


@pytest.fixture(scope="module")
def sweep(encoder, tmp_path_factory):
    """A run with three learning rates on one device: its workdir and its rows."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run(task_config("linear", encoder, lr=(0.1, 1.0, 1e38)), folder)


def test_linear_run_logs_last_and_best(sweep):
    folder, rows = sweep
    assert [row.name for row in rows] == ["lr=0.1", "lr=1", "lr=1e+38"]
    evaluations = [line for line in lines(folder) if "top1" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    last = evaluations[-1]
    assert last["last_top1"] == last["top1"] == max(rows[0].top1, rows[1].top1)
    assert last["best_top1"] >= last["last_top1"] and last["test_images"] == 32
    assert "top5" not in last  # of 4 classes


def test_diverging_head_does_not_affect_the_others(sweep, encoder, tmp_path, capsys):
    folder, rows = sweep
    assert [row.finite for row in rows] == [True, True, False]
    assert rows[2].top1 == 0.0
    alone = run(task_config("linear", encoder, lr=(1.0,)), tmp_path)
    assert alone[0].top1 == rows[1].top1 and alone[0].best_top1 == rows[1].best_top1
    printed = capsys.readouterr().out
    assert "the frozen weights are unchanged: 60 arrays are equal bit for bit" in printed
    assert "top-5" not in printed


def test_a_sweep_prints_each_head_and_the_best_so_far(encoder, tmp_path, capsys):
    lr = (0.1, 1.0, 1e38, *range(2, 12))
    rows = run(task_config("linear", encoder, lr=lr, steps=6), tmp_path)
    printed = capsys.readouterr().out.splitlines()
    starts = [i for i, line in enumerate(printed) if line.startswith("step 6  ")]
    assert re.search(
        r"top-1 [\d.]+% by lr=\S+, best of 13 heads  \(epoch 2.00, 32 test images\); "
        r"best so far [\d.]+% \(epoch [12]\); took \d+ s$",
        printed[starts[-1]],
    )
    heads = printed[starts[-1] + 1 : starts[-1] + 5]
    assert all(len(line) <= 80 for line in heads)
    for row in rows:
        text = f"{row.name} {row.top1:.2f}%" if row.finite else f"{row.name} diverged"
        assert any(text in line for line in heads)
    end = "\n".join(printed[starts[-1] :])
    assert re.search(
        r"done: step 6 of 6 in \d+:\d+ \([\d.e+]+ steps/s while training\); saved in ", end
    )
    assert "32 test images   last top-1" in end and "metrics.jsonl" in end


def test_run_stops_when_no_head_is_finite(encoder, tmp_path):
    with pytest.raises(loop.NotFinite, match="A lower --config.lr"):
        run(task_config("linear", encoder, lr=(1e38, 2e38)), tmp_path)


def test_finished_run_returns_its_results_again(sweep, encoder):
    folder, rows = sweep
    before = (folder / "metrics.jsonl").read_text()
    again = run(task_config("linear", encoder, lr=(0.1, 1.0, 1e38)), folder)
    assert again == rows and (folder / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_interrupted_run_resumes_bit_for_bit(task, encoder, tmp_path, monkeypatch):
    more = {"ema": 0.9, "mixup": 0.5} if task == "finetune" else LARS
    config = task_config(task, encoder, evaluate_every=0.0, **more)
    whole = state_of(config, tmp_path / "whole", monkeypatch)
    write = MetricsLog.write

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupt)
        with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at step 3; saved in"):
            run(config, tmp_path / "cut")
    resumed = state_of(config, tmp_path / "cut", monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resumed, whole)))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("task", [pytest.param("linear", marks=pytest.mark.slow), "finetune"])
def test_results_do_not_depend_on_the_number_of_devices(task, encoder, tmp_path):
    # 16 pixels and 90 test images: the last batch is not full.
    sources = tiny_sources()
    sources = Sources(sources.train, tiny_sources(90, seed=1).train)
    more = LARS if task == "linear" else {}
    config = task_config(task, encoder, data__image_size=16, **more)
    rows = []
    for devices in (1, 8):
        folder = tmp_path / str(devices)
        rows.append(run(config, folder, jax.devices()[:devices], sources))
    one, eight = (losses(tmp_path / str(devices)) for devices in (1, 8))
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert lines(tmp_path / "8")[-1]["test_images"] == 90
    assert rows[0][0].top1 == pytest.approx(rows[1][0].top1, abs=2.3)  # two images of 90


def test_finetune_trains_all_weights_and_linear_only_the_head(encoder, tmp_path, monkeypatch):
    before = encoder_variables()["params"]["backbone"]
    tuned = state_of(task_config("finetune", encoder), tmp_path / "f", monkeypatch)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), before, jax.device_get(tuned.params["backbone"])
    )
    assert all(distance > 0 for distance in jax.tree.leaves(moved)) and tuned.frozen == {}
    linear = state_of(task_config("linear", encoder), tmp_path / "l", monkeypatch)
    assert set(linear.params) == {"head"}
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(linear.frozen))


def test_changed_frozen_weight_is_an_error(encoder, tmp_path, monkeypatch):
    make = step.make_step

    def moving(*args):
        train_step = make(*args)

        def moved(state, images, targets):
            state, metrics = train_step(state, images, targets)
            stem = state.frozen["stem_conv"]["kernel"] + 1e-6
            return state.replace(frozen=state.frozen | {"stem_conv": {"kernel": stem}}), metrics

        return moved

    monkeypatch.setattr(step, "make_step", moving)
    with pytest.raises(evaluate.FrozenMoved, match=r"1 of 60 arrays .*stem_conv"):
        run(task_config("linear", encoder), tmp_path)


def test_baseline_runs_from_scratch_and_the_gain_is_printed(encoder, tmp_path, capsys):
    rows = run(task_config("finetune", encoder, baseline=True), tmp_path)
    scratch = lines(tmp_path / "from_scratch")[-1]["last_top1"]
    printed = capsys.readouterr().out
    assert "random weights of a resnet10, seed 0" in printed
    assert f"gain          {rows[0].top1 - scratch:+6.2f} points" in printed


def test_workdir_has_checkpoints_of_one_kind(sweep, encoder, tmp_path):
    folder, _ = sweep
    with pytest.raises(ValueError, match="of kind 'moco_jax.linear', not 'moco_jax.finetune'"):
        run(task_config("finetune", encoder), folder)
    with pytest.raises(ValueError, match="of kind 'moco_jax.linear', not 'moco_jax.pretrain'"):
        pretrain.pretrain(tiny_config(), folder, devices=ONE, sources=tiny_sources())
    with pytest.raises(
        ValueError, match=r"lr: \[0.1, 1.0, 1e\+38\] in the checkpoint, \[2.0\] now"
    ):
        run(task_config("linear", encoder, lr=(2.0,)), folder)


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_identity_is_the_content_not_its_place(task, encoder, tmp_path, caplog, capsys):
    config = task_config(task, encoder, evaluate_every=0.0)
    rows = run(config, tmp_path / "run")
    shutil.copyfile(encoder, tmp_path / "copy.safetensors")
    moved = task_config(task, tmp_path / "copy.safetensors", evaluate_every=0.0)
    moved.data.path, moved.data.source = "/scratch/job17", "images"
    assert run(moved, tmp_path / "run") == rows
    assert not caplog.records and "nothing is left to do" in capsys.readouterr().out
    # A finished run has not finished for another encoder or other images.
    other = write_encoder(tmp_path / "other.safetensors", "another one", scale=1.5)
    with pytest.raises(ValueError) as error:
        run(task_config(task, other, evaluate_every=0.0), tmp_path / "run")
    message = str(error.value)
    assert f"the encoder of {tmp_path / 'run'} changed since step 6" in message
    assert "in the checkpoint: a tiny one" in message and "now: another one" in message
    assert "may_change" not in message
    for name, sources in (
        ("images", Sources(tiny_sources(seed=1).train, tiny_sources().test)),
        ("test images", Sources(tiny_sources().train, tiny_sources(seed=1).test)),
    ):
        with pytest.raises(ValueError, match=f"^the {name} of .*run changed since step 6"):
            run(config, tmp_path / "run", sources=sources)
    changing = task_config(task, encoder, evaluate_every=0.0, data__may_change=True, steps=8)
    run(changing, tmp_path / "run", sources=tiny_sources(seed=1))
    assert "The run continues on the new ones." in caplog.text


def test_a_log_without_results_is_one_message(sweep, encoder, tmp_path):
    shutil.copytree(sweep[0], tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text('{"step": 6, "top1": 50.0}\n')
    with pytest.raises(ValueError, match="metrics.jsonl has no evaluation with epoch, top1/lr=0.1"):
        run(task_config("linear", encoder, lr=(0.1, 1.0, 1e38)), tmp_path / "run")


def test_replacement_of_an_unreadable_image_has_its_own_label(encoder):
    sources = tiny_sources()

    def read(index):
        if index == 5:
            raise OSError("gone")
        return sources.train.read(index)

    config = task_config("linear", encoder, data__canvas=16, data__resident_megabytes=0)
    bad = Sources(type(sources.train)(**vars(sources.train) | {"read": read}), sources.test)
    built = build(begin(config), make_layout(ONE), bad)
    batch = next(built.data.batches([np.arange(8, dtype=np.int32)]))
    indices = np.asarray(built.data.indices(batch))
    assert indices.tolist() == [0, 1, 2, 3, 4, 6, 6, 7]
    labels = np.asarray(built.arrays["labels"])[indices]
    assert labels.tolist() == sources.train.labels[[0, 1, 2, 3, 4, 6, 6, 7]].tolist()


def test_errors_of_the_data_and_the_encoder(encoder, tmp_path):
    images = np.zeros((40, 8, 8, 3), np.uint8)
    unlabelled = Sources(array_source(images, name="images"), None)
    config = task_config("linear", encoder)
    with pytest.raises(ValueError, match="images has no labels; a supervised task needs them"):
        run(config, tmp_path / "a", sources=unlabelled)
    labelled = Sources(tiny_sources().train, None)
    with pytest.raises(ValueError, match="has no labelled test images"):
        run(config, tmp_path / "b", sources=labelled)
    with pytest.raises(ValueError, match="has 20 labelled images for training, fewer than batch_"):
        run(config, tmp_path / "c", sources=tiny_sources(20))
    with pytest.raises(OSError, match="config.pretrained=.*there is no encoder at"):
        run(task_config("linear", tmp_path / "none"), tmp_path / "d")


SCRIPT = """
    import sys
    import jax
    port, processes, process, task, encoder, folder = sys.argv[1:]
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    from moco_jax.supervised import evaluate
    from tests.supervised.tiny import task_config
    from tests.tiny import tiny_sources

    if __name__ == "__main__":
        more = dict(data__image_size=16)
        if task == "cached":
            task, more = "linear", more | dict(cached=True)
        evaluate.evaluate(task_config(task, encoder, **more), folder, sources=tiny_sources())
"""


@pytest.mark.slow  # five processes that each compile
@pytest.mark.parametrize("task", ["linear", "finetune", "cached"])
def test_two_processes_give_the_results_of_one(task, encoder, tmp_path, repository):
    for processes in (1, 2):
        flags = devices_flags(8 // processes)
        arguments = [str(free_port()), str(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments, str(process)]
                + [task, encoder, str(tmp_path / str(processes))],
                env=os.environ | {"PYTHONPATH": str(repository), "XLA_FLAGS": flags},
            )
            for process in range(processes)
        ]
        try:
            assert [process.wait(timeout=1200) for process in running] == [0] * processes
        finally:
            for process in running:
                process.kill()
    one, two = (tmp_path / str(n) / ("cached" if task == "cached" else "") for n in (1, 2))
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    assert lines(two)[-1]["top1"] == pytest.approx(lines(one)[-1]["top1"], abs=3.2)


def test_a_batch_left_to_the_data_fits_it_and_stays_in_a_resume(encoder, tmp_path, capsys):
    config = task_config("linear", encoder, steps=2)
    leave_to_data(config, ["batch_size"])
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources(96))
    printed = capsys.readouterr().out
    assert "batch_size 8: 96 labelled images: --config.batch_size=..." in printed
    config.update_from_flattened_dict({"steps": 4, "data.may_change": True})
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources(300))
    assert "batch_size 8: as in the checkpoint" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 8


def test_the_batch_of_a_checkpoint_must_fit_the_devices(encoder, tmp_path):
    config = task_config("linear", encoder, steps=2)
    leave_to_data(config, ["batch_size"])
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources(96))
    config.steps = 4
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of the 3 devices"):
        evaluate.evaluate(config, tmp_path, devices=jax.devices()[:3], sources=tiny_sources(96))


def test_labelled_images_are_selected_once(encoder, tmp_path, monkeypatch, capsys):
    calls = []

    def select(*given):
        calls.append(given)
        return labelled(*given)

    monkeypatch.setattr("moco_jax.supervised.run.labelled", select)
    config = task_config("linear", encoder, steps=2, label_fraction=0.5)
    leave_to_data(config, ["batch_size"])
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources(96))
    printed = capsys.readouterr().out
    assert len(calls) == 1 and "labelled images: --config.batch_size=..." in printed
    assert len(re.findall(r"labels: \d+ of 96 images, 0.5 of each class", printed)) == 1


def test_a_signal_after_the_last_step_stops_before_the_baseline(encoder, tmp_path, monkeypatch):
    finish = Checkpoints.finish

    def interrupted(self, step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, step, state)

    config = task_config("linear", encoder, baseline=True, steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "finish", interrupted)
        with pytest.raises(
            loop.Interrupted, match="by SIGTERM after the end of this run. The same"
        ):
            evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources())
    assert not (tmp_path / "from_scratch").exists()
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=tiny_sources())
    assert (tmp_path / "from_scratch" / "checkpoints" / "1").is_dir()


def test_the_cached_evaluation_says_that_it_is_done(encoder, tmp_path, capsys):
    train = tiny_sources(96).train
    images = [train.read(i) for i in range(96)]
    images[0] = b"no image"
    broken = dataclasses.replace(train, read=images.__getitem__)
    sources = dataclasses.replace(tiny_sources(96), train=broken)
    config = task_config("linear", encoder, cached=True, l2=(0.1,), data__max_bad_fraction=0.1)
    evaluate.evaluate(config, tmp_path, devices=ONE, sources=sources)
    printed = capsys.readouterr().out
    assert re.search(r"95 \+ 32 features of \d+ in .* MB; 1 of the images can't be read\n", printed)
    log = tmp_path / "cached" / "metrics.jsonl"
    assert re.search(rf"\ndone in \d+:\d\d; the results are in {log}\n32 test images ", printed)
