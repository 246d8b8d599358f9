"""Several processes under a real mpirun."""

import os
import re
import subprocess
import sys

import pytest

from tests.launch import packages

pytestmark = pytest.mark.mpi


@pytest.fixture
def mpirun(repository):
    """Returns a function that runs Python on two processes."""
    packages.install(("mpirun",), "openmpi-bin")

    def mpirun(*arguments):
        command = ["mpirun", "-n", "2", "--allow-run-as-root", "--oversubscribe"]
        return subprocess.run(
            [*command, sys.executable, *arguments],
            cwd=repository,
            env=os.environ | {"XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return mpirun


def test_two_processes_form_one_cluster_of_jax(mpirun):
    done = mpirun("tests/launch/join.py")
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall("process .*", done.stdout)) == [
        "process 0 of 2 sees [0, 1]",
        "process 1 of 2 sees [0, 1]",
    ]


def test_two_processes_train_as_one(mpirun, tmp_path):
    config = (
        "from tests.tiny import tiny_config\n\ndef get_config():\n    return tiny_config(steps=2)\n"
    )
    (tmp_path / "tiny.py").write_text(config)
    arguments = (f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/run")
    done = mpirun("-m", "moco_jax.main", *arguments)
    assert done.returncode == 0, done.stderr
    assert " of 2 processes" in done.stdout and done.stdout.count("step 2/2 ") == 1
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
