"""The lines that a run ends with: quoted commands, where the encoder is, what was skipped."""

import ast
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
import types

import pytest

import moco_jax
from moco_jax.training.outputs import ending
from tests.tiny import tiny_config

PARSE = """
import importlib, sys
from moco_jax.terminal import arguments
module, *rest = sys.argv[1:]
found = importlib.import_module(module)
if hasattr(found, "__path__"):
    importlib.import_module(f"{module}.__main__")
arguments.parse([module, *rest], "required" if module == "moco_jax.main" else "optional")
"""


def commands(workdir, classes=True, **changes) -> list[str]:
    return list(ending.encoder_commands(tiny_config(**changes), workdir, classes=classes))


def test_the_lines_of_a_finished_run(repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert commands(pathlib.Path("runs/x"), name="digits") == [
        'import moco_jax; encoder = moco_jax.load("runs/x")',
        "python -m moco_jax.knn --encoder=runs/x",
        "python -m moco_jax.main --config=configs/digits_linear.py --config.pretrained=runs/x "
        "--workdir=runs/x_linear",
        "python -m moco_jax.embed --encoder=runs/x --out=runs/x/features.npz",
        "python -m moco_jax.convert --source=runs/x --to=moco_jax --out=runs/x/encoder.safetensors",
    ]


@pytest.mark.parametrize("folder", ["runs/my run; rm -rf x", "runs/it's", 'runs/"a"', "runs/ü"])
def test_paths_are_quoted(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    python, *others = commands(tmp_path / folder, name="digits")
    [path] = re.findall(r"moco_jax.load\((.*)\)$", python)
    assert ast.literal_eval(path) == folder
    assert others
    for line in others:
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"] and all(x.startswith("--") for x in words[3:])
        assert any(word.endswith(f"={folder}") for word in words)


def test_each_line_is_a_command_that_can_be_parsed(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    for line in commands(tmp_path / "my run", name="digits", model__width=1.0)[1:]:
        _, _, *words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, "-c", PARSE, *words], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "argv", "expected"),
    [
        (dict(name="digits"), [], ["configs/digits_linear.py"]),
        (
            dict(name="cifar10_simclr", data__source="tfds:cifar10"),
            [],
            ["configs/cifar10_linear.py"],
        ),
        (
            dict(name="imagenet_v2", data__source="tfds:imagenet2012", data__path="/d/a b"),
            ["--config=configs/imagenet.py", "--config.data.path=/d/a b"],
            ["configs/imagenet_linear.py", "data.path=/d/a b"],
        ),
        (
            dict(name="digits", data__source="tfds:other"),
            [],
            ["configs/digits_linear.py", "data.source=tfds:other"],
        ),
        (
            dict(name="folder_fish", data__source="images", data__path="/d/fish"),
            ["--config.data.exclude=masks", "--config.lr=0.1"],
            ["configs/folder_linear.py:/d/fish", "data.exclude=masks"],
        ),
        (dict(name="mine", data__source="tfds:other"), [], []),
    ],
)
def test_the_linear_protocol_of_the_same_images(repository, monkeypatch, changes, argv, expected):
    monkeypatch.chdir(repository)
    found = ending.linear_arguments(tiny_config(**changes), argv)
    assert found == [f"--config{'.' if i else '='}{x}" for i, x in enumerate(expected)]


def test_without_classes_there_is_no_accuracy_to_measure(tmp_path):
    lines = "\n".join(commands(tmp_path, classes=False, name="digits"))
    assert "moco_jax.knn" not in lines and "linear" not in lines and "moco_jax.embed" in lines


def test_the_command_that_continues(monkeypatch):
    main = str(pathlib.Path(moco_jax.__file__).parent / "main.py")
    monkeypatch.setattr(sys, "argv", [main, "--workdir=a b"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "moco_jax.main", "--workdir=a b"])
    line = "python3 -m moco_jax.main '--workdir=a b'"
    assert ending.continues("goes on") == f"This command goes on:\n  {line}"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/moco-jax", "--workdir=a b"])
    assert ending.same_command() == "moco-jax '--workdir=a b'"
    monkeypatch.setattr(sys, "argv", ["train.py"])  # Python code calls moco_jax
    assert ending.continues("goes on") == "The same command goes on."


def test_paths_are_those_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ending.shown(tmp_path / "runs" / "x") == "runs/x"
    assert ending.shown("/other/x") == "/other/x"


def test_skipped_images_have_their_reasons():
    assert ending.skipped(0, "") == []
    assert ending.skipped(1, "1 x the file is empty") == ["1 image skipped: 1 x the file is empty"]
    assert ending.skipped(3, "") == ["3 images skipped"]


def test_the_time_of_a_start():
    clock = ending.Clock()
    assert clock.summary() == "in 0:00"
    clock.steps, clock.stepping = 30, 6.0
    assert clock.summary() == "in 0:00 (5 steps/s while training)"


def test_the_way_to_the_first_step_has_its_parts(monkeypatch):
    times = iter([1.5, 1.51, 4.5])
    monkeypatch.setattr(ending, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(ending, "same_command", lambda: "python -m moco_jax.main")
    monkeypatch.setattr(ending, "_process_seconds", lambda: 2.0)
    clock = ending.Clock(begun=0.0)
    for part in ("building the run", "initialising", "compiling"):
        clock.passed(part)
    assert clock.way_to_first_step() == (
        "first step after 6.5 s: imports and images 2.0, building the run 1.5, compiling 3.0"
    )


def test_the_age_of_a_process_is_between_that_of_its_code_and_that_of_its_call(repository):
    code = (
        "import time\nbegun = time.monotonic()\nfrom moco_jax.training.outputs import ending\n"
        "least = time.monotonic() - begun\nprint(least, ending._process_seconds())"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, check=True, stdout=subprocess.PIPE
    )
    most = time.monotonic() - begun
    least, seconds = map(float, done.stdout.split())
    tick = 1 / os.sysconf("SC_CLK_TCK")  # the system rounds the start
    assert 0.1 < least - tick < seconds < most + tick
