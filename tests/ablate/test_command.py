"""The command, from flags to exit codes."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py"], "give a study: --study=momentum|dictionary"),
        (["--study=momentum", "--config=configs/digits_linear.py"], "got 'linear'"),
    ],
)
def test_errors_are_one_clear_message(repository, arguments, message):
    command = [sys.executable, "-m", "moco_jax.ablate", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_study_ends_in_a_table_and_goes_on_from_its_files(repository, tmp_path):
    command = [sys.executable, "-m", "moco_jax.ablate", "--study=head", "--values=mlp"]
    command += ["--config=configs/digits.py", "--config.steps=2", "--config.model.width=0.125"]
    command += ["--config.knn.every_epochs=0", "--out=~/study"]
    environment = {"HOME": str(tmp_path), "PATH": "", "JAX_PLATFORMS": "cpu"}

    def run() -> str:
        options = dict(cwd=repository, env=environment, capture_output=True, text=True)
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "| mlp | 1 | - |" in run()
    assert {p.name for p in (tmp_path / "study").iterdir()} >= {"table.md", "results.json", "mlp"}
    assert "| mlp | 1 | - |" in run()
