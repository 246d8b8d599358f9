"""Runs segmentation: learning, logging, resuming and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax.parallel.mesh import make_layout
from moco_jax.segmentation.scores import scores
from moco_jax.segmentation.segment import _prepare, build, segment
from moco_jax.segmentation.voc import open_scenes
from moco_jax.supervised.kinds import KINDS
from moco_jax.supervised.start import begin
from moco_jax.training import loop
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.segmentation import scenes
from tests.segmentation.scenes import tiny_config
from tests.supervised.tiny import encoder_variables, task_config, write_encoder

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.safetensors")


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return scenes.make(tmp_path_factory.mktemp("voc"))


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


@pytest.fixture(scope="module")
def whole(voc, encoder, tmp_path_factory):
    """A complete run on one device: its folder and its scores."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, segment(tiny_config(voc, encoder), folder, devices=ONE)


def test_a_run_logs_its_scores(whole):
    folder, reached = whole
    assert len(losses(folder)) == 4
    last = lines(folder)[-1]
    assert last["miou"] == last["best_miou"] == reached.miou and last["step"] == 4
    ious = [value for key, value in last.items() if key.startswith("iou/")]
    assert len(ious) == scenes.CLASSES and reached.miou == pytest.approx(np.mean(ious))
    assert 0 < reached.miou < reached.accuracy < 100


def test_an_interrupted_run_resumes_bit_for_bit(whole, voc, encoder, tmp_path, monkeypatch):
    write = MetricsLog.write

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(voc, encoder)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupt)
        with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at step 2; saved in"):
            segment(config, tmp_path, devices=ONE)
    reached = segment(config, tmp_path, devices=ONE)
    assert losses(tmp_path) == losses(whole[0]) and reached == whole[1]


def test_the_same_scenes_and_encoder_at_another_path_go_on(whole, voc, encoder, tmp_path, caplog):
    shutil.copytree(whole[0], tmp_path / "run")
    moved, other = tmp_path / "moved", tmp_path / "moved.safetensors"
    shutil.copytree(voc, moved)
    shutil.copyfile(encoder, other)
    config = tiny_config(moved, other)
    assert segment(config, tmp_path / "run", devices=ONE) == whole[1]
    assert not [r for r in caplog.records if "changed config" in r.getMessage()]
    [mask, *_] = sorted((moved / "SegmentationClass").iterdir())
    labels = Image.open(mask)
    labels.putpixel((0, 0), 255)  # an ignored pixel
    labels.save(mask)
    with pytest.raises(ValueError, match="images of .*run changed since step 4"):
        segment(config, tmp_path / "run", devices=ONE)


def test_results_do_not_depend_on_the_number_of_devices(whole, voc, encoder, tmp_path):
    reached = segment(tiny_config(voc, encoder), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(whole[0]), rtol=1e-4)
    assert reached.miou == pytest.approx(whole[1].miou, abs=0.5)


def test_the_backbone_starts_with_the_encoders_weights(voc, encoder):
    config = tiny_config(voc, encoder)
    begun = begin(config, _prepare)
    run = build(begun, make_layout(ONE))
    state = jax.device_get(run.create())
    for name, tree in encoder_variables().items():
        jax.tree.map(
            np.testing.assert_array_equal, getattr(state, name)["backbone"], tree["backbone"]
        )
    assert state.params["classifier"]["output"]["kernel"].shape == (1, 1, 16, scenes.CLASSES)


def test_the_gain_over_the_baseline_is_printed(voc, encoder, tmp_path, capsys):
    config = tiny_config(voc, encoder, baseline=True, steps=1)
    reached = segment(config, tmp_path, devices=ONE)
    scratch = lines(tmp_path / "from_scratch")[-1]["miou"]
    printed = capsys.readouterr().out
    assert "random weights of a resnet10, seed 0" in printed
    assert f"mIoU\npretrained    {reached.miou:6.2f}%" in printed
    assert f"gain          {reached.miou - scratch:+6.2f} points" in printed


def test_errors_of_data_and_checkpoints(whole, voc, encoder, tmp_path):
    few = tiny_config(voc, encoder, batch_size=64)
    with pytest.raises(ValueError, match="'train' has 32 images, fewer than batch_size=64"):
        segment(few, tmp_path / "few", devices=ONE)
    with pytest.raises(
        FileNotFoundError, match="list .*train_aug.txt does not exist; .* has: train, val"
    ):
        segment(
            tiny_config(voc, encoder, data__train_split="train_aug"), tmp_path / "a", devices=ONE
        )
    with pytest.raises(ValueError, match="classes: 4 in the checkpoint, 5 now"):
        segment(tiny_config(voc, encoder, classes=5), whole[0], devices=ONE)
    with pytest.raises(ValueError, match="of kind 'moco_jax.segment', not 'moco_jax.finetune'"):
        loop.train(
            task_config("finetune", encoder),
            whole[0],
            KINDS["finetune"],
            lambda _: None,
        )


@pytest.mark.slow
def test_shapes_are_learned(voc, encoder, tmp_path):
    reached = segment(tiny_config(voc, encoder, steps=60), tmp_path, devices=ONE)
    # Predicting background everywhere is the best guess without the image.
    _, counts = np.unique(
        np.concatenate([mask.ravel() for mask in _masks(voc)]), return_counts=True
    )
    blind = np.zeros((scenes.CLASSES,) * 2)
    blind[:, 0] = counts[: scenes.CLASSES]
    assert reached.miou > scores(blind).miou + 15
    assert reached.accuracy > scores(blind).accuracy + 5


def _masks(voc):
    found = open_scenes(str(voc), "val", "SegmentationClass", scenes.CLASSES, 1)
    return [found.read(i)[1] for i in range(len(found))]


SCRIPT = """
    import sys
    import jax
    port, processes, process, encoder, voc, folder = sys.argv[1:]
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    from moco_jax.segmentation.segment import segment
    from tests.segmentation.scenes import tiny_config

    if __name__ == "__main__":
        segment(tiny_config(voc, encoder), folder)
"""


@pytest.mark.slow  # two processes that each compile
def test_two_processes_give_the_results_of_one(whole, voc, encoder, tmp_path, repository):
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), port, "2", str(process)]
            + [encoder, str(voc), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(repository), "XLA_FLAGS": devices_flags(4)},
        )
        for process in range(2)
    ]
    try:
        assert [process.wait(timeout=1200) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    np.testing.assert_allclose(losses(tmp_path), losses(whole[0]), rtol=1e-4)
    assert lines(tmp_path)[-1]["miou"] == pytest.approx(whole[1].miou, abs=0.5)
