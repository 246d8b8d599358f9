"""The image: what launch/Dockerfile says; there is no Docker here to build it."""

import json
import os
import re
import subprocess

import pytest

from tests.launch.conftest import write_program


@pytest.fixture
def instructions(repository):
    """Returns [instruction, argument] of each, lines joined as Docker joins them."""
    text = (repository / "launch" / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def test_it_holds_what_a_run_needs_and_no_more(instructions, repository):
    ignored = (repository / ".dockerignore").read_text().split()
    copied = [name for kind, rest in instructions if kind == "COPY" for name in rest.split()[:-1]]
    assert {"moco_jax", "configs", "setup.py", "README.md"} <= set(copied)
    for name in copied:
        assert (repository / name).exists() and name not in ignored
    assert {".git", ".venv", "runs"} <= set(ignored)


def test_it_starts_a_run_as_a_plain_user(instructions):
    *_, user, entry = instructions
    assert user == ("USER", "moco") and entry[0] == "ENTRYPOINT"
    assert json.loads(entry[1]) == ["python", "-m", "moco_jax.main"]


@pytest.mark.parametrize(
    ("platform", "code", "said"),
    [
        ("cpu", 0, "install --no-cache-dir --editable .\n"),
        ("cuda13", 0, "install --no-cache-dir --editable .[cuda13]\n"),
        ("tpu", 0, "install --no-cache-dir --editable .[tpu]\n"),
        ("cuda12", 2, "error: PLATFORM=cuda12 is unknown; known: cpu, cuda13, tpu\n"),
    ],
)
def test_the_platform_names_an_extra(instructions, tmp_path, platform, code, said):
    write_program(tmp_path / "pip", '#!/bin/sh\necho "$@"\n')
    [install] = [rest for kind, rest in instructions if kind == "RUN" and "pip install" in rest]
    done = subprocess.run(
        ["sh", "-c", install],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PLATFORM": platform},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, said)
