"""The command line: its errors are one message, and exit with 2 before any time is spent."""

import functools

import pytest

from tests.conftest import run_command


@pytest.fixture
def run(repository, tmp_path):
    return functools.partial(run_command, repository, "moco_jax.main")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an experiment, such as --config=configs/digits.py"),
        (["--config=configs/digit.py"], "there is no config file configs/digit.py"),
        (["--config=configs/digits.py", "--config.momentun=0.9"], 'Did you mean "momentum"'),
        (["--config=configs/digits.py", "--config.modle.name=x"], 'Did you mean "model"'),
        (["--config=configs/digits.py", "--config.lr=fast"], "could not convert string to float"),
        (["--config=configs/digits.py", "--workdri=x"], "Did you mean: workdir"),
        (["--config=configs/digits.py", "lr=3"], "unexpected arguments: lr=3"),
        (["--config=configs/imagenet.py:v9"], "configs/imagenet.py:v9 is unknown; known: v1, v2"),
        (["--config=configs/folder.py"], "name the images"),
        (["--config=configs/digits.py", "--config.task=lin"], "known: pretrain, linear, finetune"),
        (["--config=configs/digits_linear.py", "--config.pretrained=no"], "there is no encoder at"),
        (["--config=configs/digits.py", "--config.model.name=resnet5"], "known: resnet10"),
    ],
)
def test_errors_are_one_clear_message(run, tmp_path, arguments, message):
    done = run(*arguments, *(["--workdir", str(tmp_path / "w")] if arguments else []))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nonsense_", "No module named 'nonsense_'"),
        ("x = 1", "get_config"),
        ("def get_config(): pass", "must return a ConfigDict, got NoneType"),
        ("from moco_jax import config\ndef get_config():\n c = config.base()\n c.lrr = 1", "lrr"),
    ],
)
def test_a_config_file_that_does_not_work_is_named(run, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    done = run(f"--config={path}", f"--workdir={tmp_path}/w")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "mine.py" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr) < 600


def test_missing_images_are_an_error(run, tmp_path):
    done = run(f"--config=configs/folder.py:{tmp_path}/none", f"--workdir={tmp_path}/w")
    assert done.returncode == 2 and f"{tmp_path}/none" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_step_from_the_command_line(run, tmp_path):
    """`steps` on the command line takes the place of the config's epochs."""
    done = run(
        "--config=configs/digits.py",
        "--config.steps=1",
        "--config.model.width=0.125",
        "--config.knn.every_epochs=0",
        f"--workdir={tmp_path}/w",
    )
    assert done.returncode == 0, done.stderr
    assert "step 1/1 " in done.stdout and "(chance " in done.stdout
    assert (tmp_path / "w" / "checkpoints" / "1").exists()
