"""What all scripts have in common, and the small ones."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import write_program

SCRIPTS = ["check.sh", "gke.sh", "local.sh", "slurm.sbatch", "test.sh", "tpu_pod.sh"]
WORDS = ["--config=a b.py", '--config.name=it\'s "x" $HOME', "*", "", "a\\b;c|d&e>f #g"]


def test_shellcheck(repository):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (apt-get install shellcheck)")
    scripts = sorted((repository / "launch").glob("[a-z]*.s*"))
    assert len(scripts) >= 8
    done = subprocess.run(
        ["shellcheck", "--external-sources", *scripts],
        cwd=repository / "launch",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(run, script):
    for flag in ("--help", "-h"):
        done = run(script, flag)
        assert done.returncode == 0 and done.stderr == ""
        assert "usage" in done.stdout and f"launch/{script}" in done.stdout
        assert "--dry-run" in done.stdout
        assert "#!" not in done.stdout and "SBATCH" not in done.stdout


def test_local_runs_the_command_and_its_dry_run_prints_it(run, checkout):
    dry = run("local.sh", "--dry-run", *WORDS)
    python = str(checkout / ".venv" / "bin" / "python")
    assert shlex.split(dry.stdout) == [python, "-m", "moco_jax.main", *WORDS]
    done = run("local.sh", *WORDS)
    assert done.returncode == 0 and done.stdout.splitlines() == ["-m", "moco_jax.main", *WORDS]
    pasted = subprocess.run(["bash", "-c", dry.stdout], capture_output=True, text=True)
    assert pasted.stdout == done.stdout


@pytest.mark.parametrize(("device", "extra"), [("0x0063", "[tpu]"), ("0x0042", "")])
def test_a_tpu_is_not_a_network_card_of_google(run, checkout, tmp_path, monkeypatch, device, extra):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    card = tmp_path / "0000:00:04.0"
    card.mkdir()
    (card / "vendor").write_text("0x1ae0\n")
    (card / "device").write_text(f"{device}\n")
    monkeypatch.setenv("PCI_DEVICES", str(tmp_path))
    monkeypatch.delenv("MOCO_JAX_PLATFORM")
    shutil.rmtree(checkout / ".venv")
    install = run("local.sh", "--dry-run", "--config=x").stdout.splitlines()[1]
    assert install.replace("\\", "").endswith(f"{checkout}{extra}")


def test_a_dry_run_prints_what_sets_up_and_leaves_no_trace(run, checkout):
    shutil.rmtree(checkout / ".venv")
    done = run("local.sh", "--dry-run", "--config=x")
    venv, install, start = map(shlex.split, done.stdout.splitlines())
    python = str(checkout / ".venv" / "bin" / "python")
    assert venv[1:] == ["-m", "venv", str(checkout / ".venv")]
    assert install[:4] == [python, "-m", "pip", "install"] and install[-1] == str(checkout)
    assert start == [python, "-m", "moco_jax.main", "--config=x"]
    assert not (checkout / ".venv").exists()


def test_the_code_of_a_local_run_is_that_of_the_command(run, checkout):
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 75\n")
    assert run("local.sh", "--config=x").returncode == 75


def test_an_unknown_platform_is_named(run, monkeypatch):
    monkeypatch.setenv("MOCO_JAX_PLATFORM", "gpu")
    done = run("local.sh", "--config=x")
    assert done.returncode == 2 and "MOCO_JAX_PLATFORM=gpu is unknown" in done.stderr


def test_the_dry_run_of_the_tests(run):
    done = run("test.sh", "--dry-run", "-m", "not slow")
    *_, pytest_command = map(shlex.split, done.stdout.splitlines())
    side_by_side = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"]
    assert pytest_command[1:] == ["-m", "pytest", *side_by_side, "-m", "not slow"]


def test_the_dry_run_of_a_slurm_job(run, checkout, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    dry = run("slurm.sbatch", "--dry-run", *WORDS)
    assert dry.returncode == 0, dry.stderr
    folder, token, start, then = dry.stdout.splitlines()
    assert shlex.split(folder) == ["cd", str(checkout)]
    assert token == "export MOCO_JAX_TOKEN=$(openssl rand -hex 16)"
    assert shlex.split(start) == [
        *("srun", "--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task=7"),
        *(str(checkout / ".venv" / "bin" / "python"), "-m", "moco_jax.main", *WORDS),
    ]
    assert then.endswith("75, its state is saved: scontrol requeue $SLURM_JOB_ID")


def test_a_slurm_job_is_not_run_by_bash(run):
    done = run("slurm.sbatch", "--config=x")
    assert done.returncode == 2 and "submit it: sbatch launch/slurm.sbatch" in done.stderr


def test_a_slurm_job_without_slurm(run, checkout, tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = run("slurm.sbatch", "x", env={"PATH": str(tmp_path), "SLURM_JOB_ID": "1"})
    assert done.returncode == 2 and "srun is not on PATH" in done.stderr


@pytest.fixture
def job(run, checkout, tmp_path):
    """Returns a function that starts the job script once more; gives the end and its requeues.

    Its srun starts one task, whose Python runs `python` (bash).
    """
    write_program(tmp_path / "bin" / "srun", SRUN)
    requeued = tmp_path / "requeued"
    write_program(tmp_path / "bin" / "scontrol", f'#!/bin/sh\necho "$@" >>"{requeued}"\n')

    def job(python: str, *arguments: str, restarts=0, **environment):
        write_program(checkout / ".venv" / "bin" / "python", f"#!/usr/bin/env bash\n{python}\n")
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        } | environment
        done = run("slurm.sbatch", *arguments, env=os.environ | environment)
        lines = requeued.read_text().splitlines() if requeued.exists() else []
        assert set(lines) <= {"requeue 7"}
        return done, len(lines)

    return job


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >&2
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""


def checkpoint(workdir: pathlib.Path, step: int) -> None:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def test_a_slurm_job_without_progress_is_not_requeued_for_ever(job, checkout):
    for restarts in range(5):
        done, requeued = job("exit 75", "--config=x", restarts=restarts)
        assert done.returncode == 75 and requeued == restarts + 1, done.stderr
    done, requeued = job("exit 75", "--config=x", restarts=5)
    assert done.returncode == 2 and requeued == 5
    assert "requeued 5 times in a row and saved no new checkpoint (latest step: 0)" in done.stderr
    assert not list(checkout.glob("*.restarts"))


@pytest.mark.parametrize("where", [[], ["--workdir=a b/run"], ["--workdir", "a b/run"]])
def test_a_slurm_job_with_progress_is_requeued_again_and_again(job, checkout, where):
    workdir = checkout / (where[-1].removeprefix("--workdir=") if where else "runs/digits")
    for restarts in range(14):
        if restarts % 3 == 0:
            checkpoint(workdir, 100 * restarts + 9)
        done, requeued = job("exit 75", "--config=x", *where, restarts=restarts)
        assert done.returncode == 75 and requeued == restarts + 1, done.stderr
    done, _ = job("exit 0", "--config=x", *where, restarts=14)
    assert done.returncode == 0 and not list(checkout.glob("*.restarts"))


def test_checkpoints_of_the_baseline_are_progress(job, checkout):
    """A run with baseline=True trains its second half in a folder of its workdir."""
    workdir = checkout / "runs" / "linear"
    checkpoint(workdir, 5000)
    for restarts in range(14):
        if restarts % 3 == 0:
            checkpoint(workdir / "from_scratch", 100 * restarts + 9)
        done, requeued = job("exit 75", f"--workdir={workdir}", restarts=restarts)
        assert done.returncode == 75 and requeued == restarts + 1, done.stderr
    for restarts in range(14, 18):
        done, _ = job("exit 75", f"--workdir={workdir}", restarts=restarts)
    assert done.returncode == 2 and "saved no new checkpoint" in done.stderr


@pytest.mark.parametrize("script", ["gke.sh", "slurm.sbatch"])
def test_help_about_restarts_fits_the_screen(run, script):
    words = run(script, "--help").stdout.partition("SIGTERM")[2]
    assert "in a row" in words and max(map(len, words.splitlines())) <= 100


def test_a_new_slurm_job_does_not_count_the_restarts_of_an_old_one(job, checkout):
    for text in ("0 5", "nonsense", "9" * 30 + " 9", ""):
        (checkout / "moco_jax-7.restarts").write_text(text)
        assert job("exit 75", restarts=0)[0].returncode == 75
    for text in ("nonsense", "9" * 30 + " 9", ""):
        (checkout / "moco_jax-7.restarts").write_text(text)
        assert job("exit 75", restarts=1)[0].returncode == 75


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_failed_slurm_job_is_not_requeued(job, code):
    done, requeued = job(f"exit {code}")
    assert done.returncode == code and requeued == 0


def test_the_tasks_of_a_slurm_job_get_a_token_that_no_argument_shows(job):
    python = 'echo "token: $MOCO_JAX_TOKEN"'
    tokens = set()
    for _ in range(2):
        done, _ = job(python)
        [token] = re.findall("^token: ([0-9a-f]{32})$", done.stdout, re.MULTILINE)
        assert token not in done.stderr  # srun's arguments
        tokens.add(token)
    assert len(tokens) == 2
    done, _ = job(python, MOCO_JAX_TOKEN="that of the user")
    assert "token: that of the user" not in done.stdout and done.returncode == 2
    done, _ = job(python, MOCO_JAX_TOKEN="that-of-the-user")
    assert "token: that-of-the-user" in done.stdout


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with a space in it", "two\nlines " * 3])
@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_pod.sh", "gke.sh"])
def test_an_unsuitable_token_is_refused_and_not_printed(run, monkeypatch, script, token):
    monkeypatch.setenv("MOCO_JAX_TOKEN", token)
    options = {
        "slurm.sbatch": (),
        "tpu_pod.sh": ("--name=a", "--project=b", "--zone=c", "--accelerator-type=v6e-8", "--"),
        "gke.sh": ("--name=a", "--image=b", "--claim=c", "--gpu=d", "--chips=8", "--hosts=2", "--"),
    }[script]
    done = run(script, "--dry-run", *options, "--config=x")
    assert done.returncode == 2 and f"MOCO_JAX_TOKEN has {len(token)} characters" in done.stderr
    assert not token or token not in done.stderr + done.stdout


@pytest.fixture
def pod(checkout, tmp_path):
    """Returns a function that starts the command of a GKE pod, whose Python runs `python`."""

    def pod(python: str, *arguments: str, **environment: str) -> subprocess.Popen:
        write_program(tmp_path / "bin" / "python", f"#!/usr/bin/env bash\n{python}\n")
        path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MOCO_JAX_JOB": "uid"}
        return subprocess.Popen(
            ["bash", str(checkout / "launch" / "gke_pod.sh"), *arguments],
            env=os.environ | path | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return pod


def test_a_pod_passes_arguments_and_the_exit_code_on(pod):
    process = pod('printf "%s\\n" "$@"; exit 7', *WORDS)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 7 and out.splitlines() == ["-m", "moco_jax.main", *WORDS]


def test_a_pod_passes_sigterm_on_and_waits_for_the_run(pod, tmp_path):
    python = f"""
        trap 'sleep 1; echo saved; exit 75' TERM
        touch "{tmp_path}/started"
        for i in $(seq 6000); do sleep 0.1; done
    """
    process = pod(python, f"--workdir={tmp_path / 'run'}")
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert (process.returncode, out) == (75, "saved\n")


def test_a_sigterm_after_the_end_of_the_run_keeps_its_exit_code(pod, tmp_path):
    # The script makes the folder after the run has ended.
    late = f'#!/usr/bin/env bash\ntouch "{tmp_path}/ended"\nsleep 1\nexec /bin/mkdir "$@"\n'
    write_program(tmp_path / "bin" / "mkdir", late)
    process = pod("exit 75", f"--workdir={tmp_path / 'run'}")
    deadline = time.monotonic() + 300
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (75, "")


def test_a_pod_without_progress_does_not_exit_with_75_for_ever(pod, checkout):
    def ends(**environment):
        process = pod("exit 75", "--workdir=shared/runs/a b", **environment)
        _, said = process.communicate(timeout=600)
        return process.returncode, said

    assert [ends()[0] for _ in range(5)] == [75] * 5
    assert ends(JOB_COMPLETION_INDEX="1")[0] == 75  # the first pod counts for all
    code, said = ends(JOB_COMPLETION_INDEX="0")
    assert code == 2 and "restarted 5 times in a row and saved no new checkpoint" in said
    assert [ends()[0] for _ in range(5)] == [75] * 5
    checkpoint(checkout / "shared/runs/a b", 10)
    assert [ends()[0] for _ in range(5)] == [75] * 5
    assert ends(MOCO_JAX_JOB="another")[0] == 75 and ends()[0] == 2
