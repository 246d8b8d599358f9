"""The loop: what is logged and saved, killed runs, other devices, bad numbers."""

import collections
import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import chex
import jax
import numpy as np
import pytest

from moco_jax.pretraining import method, pretrain
from moco_jax.pretraining.monitors import knn as knn_monitor
from moco_jax.training import loop
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.tiny import tiny_config, tiny_sources

SCRIPT = """
    import sys, time
    from moco_jax.pretraining import pretrain
    from moco_jax.training.outputs.metrics_log import MetricsLog
    from tests.pretraining.test_pretrain import calm_config
    from tests.tiny import tiny_sources

    write = MetricsLog.write
    def slowly(self, step, scalars):
        write(self, step, scalars)
        time.sleep(0.3)
    MetricsLog.write = slowly

    if __name__ == "__main__":
        pretrain.pretrain(calm_config(), sys.argv[1], sources=tiny_sources())
"""


def calm_config(**changes):
    """Returns a run that does not amplify rounding; see test_train_step.py."""
    calm = {"lr_batch": 256, "data__image_size": 16, "data__eval_resize": 16}
    return tiny_config(**(calm | changes))


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(folder) if "loss" in line}


def arrays_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 10 steps on 8 devices: its folder and final state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, pretrain.pretrain(calm_config(), folder, sources=tiny_sources())


def test_a_run_logs_what_its_user_needs(whole):
    folder, state = whole
    assert int(state.step) == 10
    log = lines(folder)
    assert log[0]["step"] == 0 and {"knn_top1", "knn_top1_pixels"} <= log[0].keys()
    assert log[0]["knn_top1_pixels"] == 100.0  # the classes of this noise differ in colour
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    expected = {
        "loss", "accuracy", "positive_similarity", "negative_similarity", "feature_std",
        "grad_norm", "param_norm", "lr", "momentum", "epoch", "chance_loss", "images_per_second",
        "data_wait_percent", "bad_images",
    }  # fmt: skip
    assert expected <= steps[-1].keys()
    assert steps[0]["chance_loss"] == pytest.approx(np.log(129))
    assert steps[2]["epoch"] == 1.0  # 96 images, 32 a step
    assert log[-1]["step"] == 10 and "knn_top1" in log[-1]

    assert json.loads((folder / "config.json").read_text())["queue_size"] == 128
    start = json.loads((folder / "starts.jsonl").read_text())
    assert start["versions"]["jax"] == jax.__version__ and start["step"] == 0
    assert list((folder / "tensorboard").iterdir())
    assert "stem_conv" in (folder / "parameters.txt").read_text()
    # Steps 4, 8 and 10 were saved, the latest two are kept.
    kept = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [8, 10]


def test_a_finished_run_started_again_does_nothing_more(whole):
    folder, state = whole
    before = (folder / "metrics.jsonl").read_text()
    arrays_equal(pretrain.pretrain(calm_config(), folder, sources=tiny_sources()), state)
    assert (folder / "metrics.jsonl").read_text() == before


def test_killed_and_restarted_it_continues_bit_for_bit(whole, tmp_path, repository):
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        cwd=repository,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    saved = tmp_path / "checkpoints" / "4"
    deadline = time.monotonic() + 1200
    while not saved.exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.45)  # some way into the steps past the checkpoint
    first.send_signal(signal.SIGKILL)
    first.wait()
    folder, state = whole
    assert not (tmp_path / "checkpoints" / "10").exists(), "the run was over before the kill"

    resumed = pretrain.pretrain(calm_config(), tmp_path, sources=tiny_sources())
    arrays_equal(resumed, state)
    assert losses(tmp_path) == losses(folder)
    starts = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in starts] in ([0, 4], [0, 8])


def test_a_run_of_eight_devices_goes_on_on_two(whole, tmp_path):
    pretrain.pretrain(calm_config(steps=4), tmp_path, sources=tiny_sources())
    config = calm_config()
    pretrain.pretrain(config, tmp_path, devices=jax.devices()[:2], sources=tiny_sources())
    folder, _ = whole
    resumed, expected = losses(tmp_path), losses(folder)
    assert resumed.keys() == expected.keys()
    np.testing.assert_allclose(
        [resumed[s] for s in range(5, 11)], [expected[s] for s in range(5, 11)], rtol=1e-4
    )
    assert resumed[5] == pytest.approx(expected[5], rel=1e-5)


def test_nothing_compiles_after_the_first_epoch(tmp_path, monkeypatch):
    chex.clear_trace_counter()
    make = method.make_train_step
    monkeypatch.setattr(
        method,
        "make_train_step",
        lambda *args, **kwargs: chex.assert_max_traces(make(*args, **kwargs), n=1),
    )
    with jax.log_compiles(False):
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, seconds, **_: (
                compiled.append(event)
                if event == "/jax/core/compile/backend_compile_duration"
                else None
            )
        )
        epochs = {}
        write = MetricsLog.write

        def note(self, step, scalars):
            epochs[step] = len(compiled)
            write(self, step, scalars)

        monkeypatch.setattr(MetricsLog, "write", note)
        config = calm_config(knn__every_epochs=1.0, checkpoint_every=3)
        pretrain.pretrain(config, tmp_path, devices=jax.devices()[:1], sources=tiny_sources())
        jax.monitoring.clear_event_listeners()
    # 3 steps an epoch; with everything seen once (step, monitor, checkpoint), nothing is new.
    assert epochs[1] > 0
    assert epochs[10] == epochs[4]


def test_not_a_number_stops_the_run_and_says_where(tmp_path):
    config = calm_config(lr=1e15, checkpoint_every=1, knn__every_epochs=0.0)
    with pytest.raises(loop.NotFinite) as error:
        pretrain.pretrain(config, tmp_path, devices=jax.devices()[:1], sources=tiny_sources())
    message = str(error.value)
    assert "step 2: " in message or "step 3: " in message
    assert "Not finite in the state: " in message and "/backbone/" in message
    assert str(tmp_path / "checkpoints" / "1") in message
    assert all(np.isfinite(loss) for loss in losses(tmp_path).values())


def test_a_state_that_is_not_finite_is_not_saved_without_images_either():
    def save(step, state):
        raise loop.StateNotFinite("statistics")

    checkpoints = types.SimpleNamespace(save=save, wait=lambda: None, latest=None)
    task, state = types.SimpleNamespace(hint="Lower lr."), types.SimpleNamespace(step=3)
    with pytest.raises(loop.NotFinite, match="step 3: .*statistics.*none yet. Lower lr."):
        loop._save_done(task, state, 1, collections.deque(), checkpoints)


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    write, collects = MetricsLog.write, []

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        collects.append(gc.isenabled())
        if step == 2 and "loss" in scalars:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", interrupt)
    config = calm_config(knn__every_epochs=0.0)
    with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at step 3; saved in"):
        pretrain.pretrain(config, tmp_path, devices=jax.devices()[:1], sources=tiny_sources())
    assert (tmp_path / "checkpoints" / "3").exists()
    assert collects and all(collects)  # only tracing pauses the collection of garbage


def ask_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)  # longer than the signal takes, in whatever thread this is


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(whole, tmp_path, monkeypatch):
    encoded, calls = knn_monitor.KnnMonitor.encoded, []

    def asked(self, *args):
        calls.append(1)
        if len(calls) == 2:  # after step 5; the first is of the untrained network
            ask_and_wait()
        return encoded(self, *args)

    monkeypatch.setattr(knn_monitor.KnnMonitor, "encoded", asked)
    config = calm_config(knn__every_epochs=5 / 3)
    with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at step 5; saved in"):
        pretrain.pretrain(config, tmp_path, sources=tiny_sources())
    resumed = pretrain.pretrain(config, tmp_path, sources=tiny_sources())
    folder, state = whole
    arrays_equal(resumed, state)
    assert [line["step"] for line in lines(tmp_path) if "knn_top1" in line] == [0, 5, 10]


def test_a_signal_during_compilation_does_not_wait_for_its_end(tmp_path, monkeypatch):
    make = method.make_train_step

    def slow_to_trace(*args, **kwargs):
        step = make(*args, **kwargs)

        def traced(*args):
            ask_and_wait()
            return step(*args)

        return traced

    monkeypatch.setattr(method, "make_train_step", slow_to_trace)
    with pytest.raises(loop.Interrupted, match="SIGTERM before the first step was done"):
        config = calm_config(knn__every_epochs=0.0)
        pretrain.pretrain(config, tmp_path, devices=jax.devices()[:1], sources=tiny_sources())
    [compiling] = [thread for thread in threading.enumerate() if thread.name == "compile"]
    compiling.join()  # it was still at work, and must not meet the next test


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__width": 0.25}, r"model.width: 0.125 in the checkpoint, 0.25 now"),
        ({"queue_size": 256}, r"queue_size: 128 in the checkpoint, 256 now"),
    ],
)
def test_another_model_or_dictionary_is_refused(whole, changes, message):
    folder, _ = whole
    with pytest.raises(ValueError, match=message):
        pretrain.pretrain(calm_config(**changes), folder, sources=tiny_sources())


def test_fewer_images_than_a_batch(tmp_path):
    with pytest.raises(ValueError, match="has 20 images, fewer than batch_size=32"):
        pretrain.pretrain(calm_config(), tmp_path, sources=tiny_sources(20))


def test_one_workdir_is_one_process(tmp_path):
    with (
        loop.workdir.opened(tmp_path) as folder,
        pytest.raises(ValueError, match="another process is running in"),
    ):
        pretrain.pretrain(calm_config(), folder, sources=tiny_sources())


def test_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match="has metrics.jsonl but no starts.jsonl"):
        pretrain.pretrain(calm_config(), tmp_path, sources=tiny_sources())
    assert (tmp_path / "metrics.jsonl").read_text() == "mine\n"


def test_a_start_that_failed_on_its_data_does_not_spoil_the_workdir(tmp_path):
    for _ in range(2):  # the second time not with 'no run of moco_jax wrote them'
        with pytest.raises(ValueError, match="has 20 images, fewer than batch_size=32"):
            pretrain.pretrain(calm_config(), tmp_path, sources=tiny_sources(20))


def test_a_workdir_on_the_network_is_refused():
    with pytest.raises(ValueError, match="gs://bucket/run must be a local or mounted folder"):
        pretrain.pretrain(calm_config(), "gs://bucket/run", sources=tiny_sources())


def test_an_evaluation_that_was_cut_short_is_made_up_for(whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    *kept, last = log.read_text().splitlines(keepends=True)
    assert "knn_top1" in last
    log.write_text("".join(kept))
    pretrain.pretrain(calm_config(), tmp_path / "run", sources=tiny_sources())
    assert json.loads(log.read_text().splitlines()[-1]) == json.loads(last)


def test_other_images_are_refused_unless_they_may_change(whole, tmp_path, caplog):
    folder, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    # The run is finished, and other images must not be told that nothing is left to do.
    for other in (tiny_sources(100), tiny_sources(96, seed=1)):
        with pytest.raises(ValueError) as error:
            pretrain.pretrain(calm_config(), tmp_path / "run", sources=other)
        message = str(error.value)
        assert f"the images of {tmp_path / 'run'} changed since step 10" in message
        assert "in the checkpoint: 96 images of arrays, 4 classes: 0, 1, 2, 3" in message
        assert f"now: {len(other.train)} images of arrays" in message
        assert "--workdir=" in message and "--config.data.may_change=True" in message
    config = calm_config(data__may_change=True, steps=12)
    pretrain.pretrain(config, tmp_path / "run", sources=tiny_sources(100))
    assert "now: 100 images of arrays" in caplog.text
    # From now on these are the run's images.
    pretrain.pretrain(calm_config(steps=12), tmp_path / "run", sources=tiny_sources(100))


def test_the_same_images_at_another_path_continue_silently(whole, tmp_path, caplog):
    folder, state = whole
    shutil.copytree(folder, tmp_path / "run")
    config = calm_config(data__path="/scratch/job17", data__source="images")
    arrays_equal(pretrain.pretrain(config, tmp_path / "run", sources=tiny_sources()), state)
    assert not caplog.records


def test_a_run_asked_for_fewer_steps_says_where_it_is(whole, capsys):
    pretrain.pretrain(calm_config(steps=6), whole[0], sources=tiny_sources())
    assert (
        "the run is at step 10, and the config asks for 6: nothing is left"
        in capsys.readouterr().out
    )


def test_a_half_written_checkpoint_is_not_taken_for_whole(whole, tmp_path):
    folder, state = whole
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    half = run / "checkpoints" / "12.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "10", half)
    arrays_equal(pretrain.pretrain(calm_config(), run, sources=tiny_sources()), state)
    assert not half.exists()


def test_a_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "starts.jsonl").write_text("")
    with pytest.raises(ValueError, match="checkpoints/5: about/metadata is missing"):
        pretrain.pretrain(calm_config(), tmp_path, sources=tiny_sources())


def test_a_workdir_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        pretrain.pretrain(calm_config(), tmp_path / "file" / "run", sources=tiny_sources())


def test_streamed_and_resident_images_give_the_same_losses(tmp_path):
    results = []
    for megabytes in (0, 100):
        config = calm_config(
            steps=4, data__canvas=16, data__resident_megabytes=megabytes, knn__every_epochs=0.0
        )
        folder = tmp_path / str(megabytes)
        pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())
        results.append(list(losses(folder).values()))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
