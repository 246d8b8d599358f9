"""`python -m moco_jax.main`: errors are one message and the exit code 2, before any work."""

import pytest

from moco_jax import main
from tests.conftest import run_command
from tests.in_process import exit_code


@pytest.fixture
def run(repository, monkeypatch, capsys):
    """Runs `main` with arguments: returns the exit code and the standard error."""

    def run(*arguments):
        monkeypatch.chdir(repository)
        code = exit_code(main.run, *arguments)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config must be given, such as --config=configs/digits.py"),
        (["--config=configs/digit.py"], "there is no config file configs/digit.py"),
        (
            ["--config=configs/digits.py", "--config.momentun=0.9"],
            "there is no config key 'momentun'; did you mean 'momentum'?",
        ),
        (
            ["--config=configs/digits.py", "--config.dim=64"],
            "there is no config key 'dim'; did you mean 'decoder.dim' or 'model.dim'?",
        ),
        (["--config=configs/digits.py", "--config.modle.name=x"], "did you mean 'model.name'?"),
        (
            ["--config=configs/digits.py", "--config.xyzzy=x"],
            "there is no config key 'xyzzy'; `python -m moco_jax.keys` lists all keys",
        ),
        (
            ["--config=configs/digits.py", "--config.lr=fast"],
            "--config.lr=fast: lr must be a number, such as 0.03",
        ),
        (
            ["--config=configs/digits.py", "--workdri=x"],
            "--workdri: there is no such flag; did you mean --workdir?",
        ),
        (["--config=configs/digits.py", "lr=3"], "unexpected arguments: lr=3"),
        (
            ["--config=configs/imagenet.py:v9"],
            "configs/imagenet.py:v9: the variant 'v9' is unknown; allowed: no variant, v1, v2",
        ),
        (["--config=configs/folder.py"], "name the images"),
        (
            ["--config=configs/digits.py", "--config.task=lin"],
            "allowed: pretrain, linear, finetune",
        ),
        (["--config=configs/digits_linear.py", "--config.pretrained=no"], "there is no encoder at"),
        (["--config=configs/digits.py", "--config.model.name=resnet5"], "allowed: resnet10"),
    ],
)
def test_errors_are_one_clear_message(run, tmp_path, arguments, message):
    code, printed = run(*arguments, *(["--workdir", str(tmp_path / "w")] if arguments else []))
    assert code == 2, printed
    assert message in printed
    assert printed.startswith("error: ") and "Traceback" not in printed
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
def test_error_names_the_config_file_that_fails(run, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    code, printed = run(f"--config={path}", f"--workdir={tmp_path}/w")
    assert code == 2, printed
    assert message in printed and "mine.py" in printed
    assert "Traceback" not in printed and len(printed) < 600


def test_missing_images_are_an_error(run, tmp_path):
    code, printed = run(f"--config=configs/folder.py:{tmp_path}/none", f"--workdir={tmp_path}/w")
    assert code == 2 and f"{tmp_path}/none" in printed
    assert "Traceback" not in printed


def test_error_ends_a_process_of_its_own(repository, tmp_path):
    done = run_command(repository, "moco_jax.main", "--config=configs/digits.py",
                       "--config.model.name=resnet5", f"--workdir={tmp_path}/w")  # fmt: skip
    assert done.returncode == 2 and "allowed: resnet10" in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_one_step_from_the_command_line(repository, tmp_path):
    """`steps` on the command line replaces the epochs of the config."""
    done = run_command(
        repository,
        "moco_jax.main",
        "--config=configs/digits.py",
        "--config.steps=1",
        "--config.model.width=0.125",
        "--config.knn.every_epochs=0",
        f"--workdir={tmp_path}/w",
    )
    assert done.returncode == 0, done.stderr
    assert "step 1/1 " in done.stdout and "(chance " in done.stdout
    assert (tmp_path / "w" / "checkpoints" / "1").exists()
