"""Programs that a test needs and Debian has."""

import os
import shutil
import subprocess

import pytest


def install(programs: tuple[str, ...], packages: str) -> None:
    """Installs the packages unless the programs are there; skips the test where that can't be."""
    if all(map(shutil.which, programs)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {', '.join(programs)} (on Debian, as root, they install themselves)")
    command = f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {packages}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{packages} can't be installed: {done.stderr.strip()[-200:]}")
