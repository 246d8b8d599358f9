"""What all scripts have in common, and the small ones."""

import shlex
import shutil
import subprocess

import pytest

SCRIPTS = ["gke.sh", "local.sh", "slurm.sbatch", "test.sh", "tpu_pod.sh"]
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
    folder, start, then = dry.stdout.splitlines()
    assert shlex.split(folder) == ["cd", str(checkout)]
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
