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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study=momentum", "--arms=both"], "--arms has no effect with --study=momentum"),
        (["--study=pretext", "--values=1"], "--values has no effect with --study=pretext"),
        (["--study=pretext", "--linear=none.py"], "--linear=none.py: there is no config file"),
    ],
)
def test_flags_of_another_study_are_an_error(repository, arguments, message):
    done = run_command(
        repository, "moco_jax.ablate", "--config=tests/ablate/experiment.py", *arguments
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


_EVALUATIONS = ("--linear=configs/digits_linear.py", "--finetune=configs/digits_finetune.py:full")


def test_the_plan_of_pretexts_is_printed_and_nothing_runs(repository, tmp_path):
    done = run_command(
        repository,
        "moco_jax.ablate",
        "--study=pretext",
        "--config=tests/ablate/experiment.py",
        "--config.steps=100",
        "--config.warmup_epochs=0",
        *_EVALUATIONS,
        "--linear_epochs=2",
        "--dry_run",
        f"--out={tmp_path / 'study'}",
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith("the plan: 8 runs with each seed (0), on 5,988 images\n")
    assert ["steps", "and", "compute", "contrastive", "100"] in [line[:5] for line in lines]
    assert ["steps", "masked_then_contrastive", "50", "+", "50"] in [line[:5] for line in lines]
    assert "then linear: digits_linear, 2 epochs" in done.stdout
    assert not (tmp_path / "study").exists()
