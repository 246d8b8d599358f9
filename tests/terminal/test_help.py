"""What a user sees who asks for help."""

import pathlib
import re

import pytest

from moco_jax import __main__ as listing
from moco_jax.terminal import help
from tests.conftest import run_command

COMMANDS = re.findall(r"    python -m (\S+)", listing.__doc__ or "")
# Modules that another command runs.
INNER = {"moco_jax", "moco_jax.input_benchmark", "moco_jax.training.outputs.sinks.child"}
NO_CONFIG = {"moco_jax.check", "moco_jax.data.prepare", "moco_jax.report"}


def test_the_commands_fit_one_screen(repository):
    done = run_command(repository, "moco_jax")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert len(lines) < 24 and max(map(len, lines)) <= 80


def test_all_commands_are_listed(repository):
    package = repository / "moco_jax"
    found = set()
    for file in package.rglob("*.py"):
        if 'if __name__ == "__main__"' in file.read_text():
            found.add(".".join(file.relative_to(repository).with_suffix("").parts))
    found = {name.removesuffix(".__main__") for name in found}
    assert found - INNER == set(COMMANDS)


def test_the_list_needs_no_jax(repository):
    found = run_command(repository, "tests.terminal.imported_modules", "moco_jax")
    assert found.returncode == 0, found.stderr
    assert "moco_jax" in found.stdout.split() and "jax" not in found.stdout.split()


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 0), (("help",), 0), (("--help",), 0), (("embed",), 2)]
)
def test_arguments_of_the_list(arguments, code, capsys):
    assert listing.main(list(arguments)) == code
    printed = capsys.readouterr()
    hint = "takes no arguments, got 'embed'; did you mean python -m moco_jax.embed?"
    assert (hint if code else "") in printed.err
    assert bool(printed.out) == (code == 0)


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_the_installed_command_lists_too(arguments, capsys, monkeypatch):
    monkeypatch.setattr(listing.sys, "argv", ["moco-jax", *arguments])
    with pytest.raises(SystemExit) as end:
        listing.run()
    assert end.value.code == 0 and "moco_jax.embed" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(repository, command):
    done = run_command(repository, command, "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    examples = [line for line in lines if line.startswith(f"  python -m {command} ")]
    assert 2 <= len(examples) <= 3
    assert lines.index("Examples:") < lines.index("Flags:")
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert (flags[0] == "--config") == (command not in NO_CONFIG)
    assert len(flags) == len(set(flags)) and "--verbosity" not in flags
    used = {flag for line in examples for flag in re.findall(r"(--[a-z_]+)[ =]", line)}
    assert used <= set(flags)


def test_all_flags_of_libraries(repository):
    done = run_command(repository, "moco_jax.knn", "--helpfull")
    assert done.returncode == 0 and "--encoder" in done.stdout and "--verbosity" in done.stdout


@pytest.mark.parametrize("given", ["digits.py", "configs/digits.py"])
@pytest.mark.parametrize("form", [["--config={}"], ["-config={}"], ["--config", "{}"]])
@pytest.mark.parametrize("variant", ["", ":simclr"])
def test_an_installed_experiment_is_found(tmp_path, monkeypatch, capsys, given, form, variant):
    monkeypatch.chdir(tmp_path)
    arguments = ["command", *[x.format(given + variant) for x in form], "--config.lr=1"]
    found = help.with_installed_config(arguments)
    path = help.configs.FOLDER / "digits.py"
    assert found == ["command", *[x.format(f"{path}{variant}") for x in form], "--config.lr=1"]
    assert capsys.readouterr().err == f"config {path}\n"


@pytest.mark.parametrize(
    "given", ["none.py", "other/digits.py", "/digits.py", "digits", "../configs/digits.py", ""]
)
def test_another_path_stays(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    arguments = ["command", f"--config={given}", "--config"]
    assert help.with_installed_config(arguments) == arguments
    assert capsys.readouterr().err == ""


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("digits.py").write_text("")
    assert help.with_installed_config(["command", "--config=digits.py"])[1] == "--config=digits.py"
