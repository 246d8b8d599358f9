"""Runs the command: flags, output and exit codes."""

import pytest

from tests.conftest import run_command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py"], "--study must be given; allowed: momentum, dictionary"),
        (["--study=momentum", "--config=configs/digits_linear.py"], "got 'linear'"),
    ],
)
def test_errors_are_one_clear_message(repository, arguments, message):
    done = run_command(repository, "moco_jax.ablate", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_study_prints_a_table_and_reads_finished_runs(repository, tmp_path):
    arguments = ["--study=head", "--values=mlp", "--config=configs/digits.py", "--out=~/study"]
    arguments += ["--config.steps=2", "--config.model.width=0.125", "--config.knn.every_epochs=0"]

    def run() -> str:
        done = run_command(repository, "moco_jax.ablate", *arguments, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "| mlp | 1 | - |" in run()
    assert {p.name for p in (tmp_path / "study").iterdir()} >= {"table.md", "results.json", "mlp"}
    assert "| mlp | 1 | - |" in run()
