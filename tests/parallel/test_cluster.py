"""Runs of real processes on localhost: equal losses, kills, signals, wrong flags."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from moco_jax.data.prepare import shards as conversion
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.opening import open_sources
from moco_jax.parallel import cluster
from moco_jax.training.integrity import checkpoint_files
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.tiny import tiny_sources

STEPS = 10
PATIENCE = 900  # seconds: many times what a slow machine takes, since only a hang may fail

# SLOW names a phase that sleeps, so that a signal arrives between two steps, in an evaluation or in
# a compilation.
CONFIG = """
    import os, time
    from moco_jax.pretraining import method
    from moco_jax.pretraining.monitors import knn as knn_monitor
    from moco_jax.training.outputs import metrics_log
    from tests.tiny import tiny_config

    seconds = [float(x) for x in os.environ.get("SECONDS_", "0").split(",")]

    def slowed(function, name):
        def slow(*args, **kwargs):
            if os.environ.get("SLOW") == name:
                print(f"slow {{name}}", flush=True)
                time.sleep(seconds.pop(0) if len(seconds) > 1 else seconds[0])
            return function(*args, **kwargs)
        return slow

    metrics_log.MetricsLog.write = slowed(metrics_log.MetricsLog.write, "step")
    knn_monitor.knn_top1 = slowed(knn_monitor.knn_top1, "knn")
    make = method.make_train_step
    method.make_train_step = lambda *args, **kwargs: slowed(make(*args, **kwargs), "compile")

    def get_config():  # views and learning rate keep rounding small, see test_train_step.py
        return tiny_config(
            batch_size=64, queue_size=256, lr=0.003, lr_batch=256, data__image_size=16,
            data__eval_resize=16, data__source="images", data__path={images!r},
            knn__every_epochs=2.0,
        )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The path of a config of 10 steps, 3 an epoch, evaluated at steps 0, 6 and 10."""
    folder = tmp_path_factory.mktemp("config")
    train = tiny_sources(240).train
    images = np.stack([train.read(i) for i in range(len(train))])
    np.savez(folder / "images.npz", images=images, labels=np.asarray(train.labels))
    text = textwrap.dedent(CONFIG).format(images=str(folder / "images.npz"))
    (folder / "tiny.py").write_text(text)
    return folder / "tiny.py"


@pytest.fixture
def start(repository, config):
    """Starts training in a number of processes that share 8 devices; kills them at the end."""
    started = []

    def start(folder, processes, *arguments, slow="", seconds="0.3", folders=(None, None)):
        port, running = free_port(), []
        environment = os.environ | {
            "PYTHONPATH": str(repository),
            "XLA_FLAGS": devices_flags(8 // processes),
            "SLOW": slow,
            "SECONDS_": seconds,
        }
        for i in range(processes):
            joining = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
            joining = (
                [*joining, f"--process={i}", f"--join_timeout={PATIENCE}"] if processes > 1 else []
            )
            command = [sys.executable, "-m", "moco_jax.main", f"--config={config}"]
            with open(folder.parent / f"{folder.name}-{i}.out", "w") as out:
                running.append(
                    subprocess.Popen(
                        [*command, f"--workdir={folder}", *joining, *arguments],
                        env=environment,
                        cwd=folders[i],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
        started.extend(running)
        return running

    yield start
    for process in started:
        process.kill()
        process.wait()


def output(folder: pathlib.Path, process: int = 0) -> str:
    return (folder.parent / f"{folder.name}-{process}.out").read_text()


def ended(processes, seconds=PATIENCE) -> list[int]:
    return [process.wait(timeout=seconds) for process in processes]


def wait_for(condition, processes, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def measured(folder: pathlib.Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def two(whole, start):
    """The folder of an uninterrupted run of two processes."""
    if not whole.exists():
        assert ended(start(whole, 2)) == [0, 0], output(whole)
    return whole


def test_two_processes_have_the_losses_of_one(two, start, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    assert ended(start(one, 1, "--config.steps=12")) == [0], output(one)
    expected = measured(one, "loss")
    assert list(expected) == list(range(1, 13))
    alike(measured(two, "loss"), expected, STEPS)
    evaluated = measured(one, "knn_top1")
    assert measured(two, "knn_top1") == {0: evaluated[0], 6: evaluated[6], 10: 100.0}
    assert "2 processes" in output(two, 0) and "step 10/10" in output(two, 0)
    # Only process 0 prints.
    assert "step" not in output(two, 1) and "workdir" not in output(two, 1)
    start_line = json.loads((two / "starts.jsonl").read_text())
    assert start_line["processes"] == 2 and len(start_line["devices"]) == 8
    # One process resumes the checkpoint of two.
    shutil.copytree(two, run)
    assert ended(start(run, 1, "--config.steps=12")) == [0], output(run)
    assert "resumed at step 10" in output(run)
    alike(measured(run, "loss"), expected, 12, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_with_split_parameters(two, start, tmp_path):
    split = tmp_path / "split"
    assert ended(start(split, 2, "--config.mesh.fsdp=2")) == [0, 0], output(split)
    alike(measured(split, "loss"), measured(two, "loss"), STEPS)


def alike(losses, expected, steps: int, *, rtol=1e-5) -> None:
    assert list(losses) == list(range(1, steps + 1))
    np.testing.assert_allclose(
        list(losses.values()), [expected[step] for step in losses], rtol=rtol
    )


@pytest.mark.slow  # eight processes; tests/pretraining has the same of one process
def test_a_run_resumes_bit_for_bit_after_a_kill_and_a_signal(two, start, tmp_path):
    folder = tmp_path / "run"
    running = start(folder, 2, slow="step")
    wait_for((folder / "checkpoints" / "4").exists, running)
    running[1].send_signal(signal.SIGKILL)
    assert running[0].wait(timeout=PATIENCE) not in (0, 75)
    assert not (folder / "checkpoints" / "10").exists(), "the run ended before the kill"

    running = start(folder, 2, slow="step")
    wait_for(lambda: "slow step" in output(folder), running)
    running[1].send_signal(signal.SIGTERM)  # one gets it, all save and stop at the same step
    assert ended(running) == [75, 75], output(folder)
    stopped = max(measured(folder, "loss"))
    assert stopped < STEPS and (folder / "checkpoints" / str(stopped)).exists()
    assert f"stopped by SIGTERM at step {stopped}; saved in" in output(folder)

    assert ended(start(folder, 2)) == [0, 0], output(folder)
    assert f"resumed at step {stopped}" in output(folder)
    assert measured(folder, "loss") == measured(two, "loss")


@pytest.mark.slow  # four processes
def test_two_processes_resume_on_shards_bit_for_bit(two, start, tmp_path, config):
    sources = open_sources(
        source="images", path=str(config.parent / "images.npz"), held_out=0.0, seed=0
    )
    shards, folder = tmp_path / "shards", tmp_path / "run"
    conversion.convert(
        sources, shards, Encoding(), images_per_shard=50, max_bad_fraction=0.0, threads=2
    )
    data = (f"--config.data.path={shards}", "--config.data.resident_megabytes=0")
    assert ended(start(folder, 2, *data, "--config.steps=7")) == [0, 0], output(folder)
    assert "streamed by" in output(folder) and len(measured(folder, "loss")) == 7
    assert ended(start(folder, 2, *data)) == [0, 0], output(folder)
    assert "resumed at step 7" in output(folder)
    assert measured(folder, "loss") == measured(two, "loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "processes"), [("step", 1), ("knn", 1), ("knn", 2), ("compile", 1), ("compile", 2)]
)
def test_sigterm_loses_no_step(two, start, tmp_path, phase, processes):
    """A single process stops at once; one of several first finishes the step with the others."""
    folder = tmp_path / "run"
    seen = {"step": 3, "knn": 3, "compile": 1}[phase]  # kNN: network and pixels at 0, then step 6
    seconds = "0.3" if phase == "step" else "3"
    if phase != "step" and processes == 1:  # it must not wait for the end: that takes an hour
        seconds = ",".join(["0"] * (seen - 1) + ["3600"])
    running = start(folder, processes, slow=phase, seconds=seconds)
    wait_for(lambda: output(folder).count(f"slow {phase}") >= seen, running)
    running[-1].send_signal(signal.SIGTERM)
    assert ended(running) == [75] * processes, output(folder)
    done = max(measured(folder, "loss"), default=0)
    assert max(checkpoint_files.steps(folder / "checkpoints"), default=0) >= done
    assert ended(start(folder, processes)) == [0] * processes, output(folder)
    alike(measured(folder, "loss"), measured(two, "loss"), STEPS)
    assert measured(folder, "knn_top1").keys() == {0, 6, 10}


@pytest.mark.slow
def test_other_images_on_another_process_are_refused(start, tmp_path, config):
    """For example an old copy of a data set on one machine."""
    folder, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    with np.load(config.parent / "images.npz") as data:
        images, labels = data["images"], data["labels"]
    np.savez(other / "images.npz", images=images[:200], labels=labels[:200])
    argument = "--config.data.path=images.npz"
    running = start(folder, 2, argument, folders=(config.parent, other))
    assert ended(running) == [2, 2], output(folder)
    assert "differs from process 0's (process 1)" in output(folder, 1)
    assert "the data set images.npz, train: see the error message of process 1" in output(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "localhost:1"}, "given together; got --coordinator=localhost:1$"),
        ({"processes": 2, "process": 0}, "given together; got --processes=2 --process=0$"),
        ({"process": 1}, "given together; got --process=1$"),
        (
            {"coordinator": "localhost", "processes": 2, "process": 0},
            "must be HOST:PORT with .*; got --coordinator=localhost$",
        ),
        (
            {"coordinator": "localhost:1", "processes": 2, "process": 2},
            "from 0 to --processes - 1; got --processes=2 --process=2$",
        ),
        ({"coordinator": "localhost:1", "processes": 0, "process": 0}, "must be at least 1"),
        ({"coordinator": "a..b:1", "processes": 2, "process": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:65536", "processes": 2, "process": 0}, "a port from 1 to 65535"),
        ({"bind": "here"}, "--coordinator_bind_address must be HOST:PORT .* got .*=here$"),
    ],
)
def test_wrong_cluster_flags_raise(given, message):
    with pytest.raises(cluster.WrongFlags, match=message), cluster.joined(**given):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        ({"SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, [3]),
        (
            {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"},
            None,
        ),
        (
            {
                "SLURM_LOCALID": "3",
                "SLURM_STEP_TASKS_PER_NODE": "4",
                "CUDA_VISIBLE_DEVICES": "2",
            },
            None,
        ),
        (
            {
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_GPUS_PER_TASK": "2",
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            None,
        ),
        (
            {
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "CUDA_VISIBLE_DEVICES": "GPU-1, GPU-2",
            },
            [1],
        ),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": ""},
            None,
        ),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, [1]),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None),
    ],
)
def test_a_task_takes_one_gpu_only_if_it_shares_the_machine(monkeypatch, environment, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster._local_devices() == expected


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:3",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**SLURM, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID must be a whole number; got SLURM_JOB_ID=x"),
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_PROCID must be a whole number"),
        ({**SLURM, "SLURM_NTASKS": "2(x2)"}, "SLURM_NTASKS must be a whole number"),
        ({**SLURM, "SLURM_LOCALID": "\x1b[2J"}, r"got SLURM_LOCALID=\\x1b\[2J"),
        ({**SLURM, "SLURM_PROCID": "2"}, "the launcher set process 2 of 2, which is out of range"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "the launcher's coordinator must be HOST:PORT"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "abc"}, "must be like 2\\(x3\\),1; got .*=abc"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "-1"}, "SLURM_NODEID must be"),
        ({**SLURM, "JAX_COORDINATOR_PORT": "abc"}, "the launcher's coordinator must be HOST:PORT"),
        ({**OMPI, "OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK must be a whole number"),
        ({**OMPI, "OMPI_MCA_orte_hnp_uri": "x"}, "the cluster can't be detected .*--coordinator"),
        ({**OMPI, "OMPI_COMM_WORLD_LOCAL_RANK": "1e3"}, "OMPI_COMM_WORLD_LOCAL_RANK must be"),
        (
            {**OMPI, "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "two"},
            "OMPI_COMM_WORLD_LOCAL_SIZE must be a whole number; got OMPI_COMM_WORLD_LOCAL_SIZE=two",
        ),
        (
            {**SLURM, "SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4"}
            | {"CUDA_VISIBLE_DEVICES": "0,1"},
            "4 tasks run on this machine, but CUDA_VISIBLE_DEVICES=0,1 has 2 GPUs",
        ),
        ({**SLURM, "MOCO_JAX_TOKEN": "short"}, "MOCO_JAX_TOKEN has 5 characters"),
    ],
)
def test_a_malformed_variable_is_named(monkeypatch, environment, message):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cluster.WrongFlags, match=message), cluster.joined(timeout=1):
        pass


@pytest.mark.parametrize("tasks", ["1(x1000000)", "4(x2),2(x9999999),1", "1," * 2000 + "1"])
def test_long_lists_of_tasks_are_read(monkeypatch, tasks):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_NODEID", "1500")
    assert cluster._tasks_here() in (1, 2)


def test_a_message_to_all_is_json_of_bounded_length(monkeypatch):
    monkeypatch.setattr(cluster, "_LONGEST_MESSAGE", 100)
    assert cluster._encoded({"result": [1, "é"]}) == b'{"result": [1, "\\u00e9"]}'
    with pytest.raises(ValueError, match="a result of 114 bytes .* at most 100 can be sent"):
        cluster._encoded({"result": "x" * 100})
