"""A checkout that scripts can run in, where `python` does what a test says."""

import os
import pathlib
import shutil
import stat
import subprocess

import pytest


def write_program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def make_checkout(folder: pathlib.Path, repository: pathlib.Path, python: str) -> pathlib.Path:
    """Returns a copy of what the scripts read, set up, with `python` (bash) as its Python."""
    shutil.copytree(repository / "launch", folder / "launch")
    for name in ("setup.py", ".dockerignore"):
        shutil.copy(repository / name, folder / name)
    write_program(folder / ".venv" / "bin" / "python", f"#!/usr/bin/env bash\n{python}\n")
    setup = (folder / "setup.py").read_bytes()
    wanted = subprocess.run(["cksum"], input=setup, capture_output=True, check=True).stdout
    (folder / ".venv" / "installed").write_bytes(b" " + wanted)
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Nothing of this machine's decides what a script does."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "CLOUDSDK_", "MOCO_JAX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOCO_JAX_PLATFORM", "cpu")


@pytest.fixture
def checkout(tmp_path, repository):
    """A checkout whose Python prints its arguments, one a line."""
    return make_checkout(tmp_path / "check out", repository, 'printf "%s\\n" "$@"')


@pytest.fixture
def run(checkout):
    """Returns a function that runs a script of the checkout by bash."""

    def run(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(checkout / "launch" / script), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            **options,
        )

    return run
