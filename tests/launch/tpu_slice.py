"""A TPU slice whose hosts are folders of this machine, behind tests/launch/fake_gcloud.py."""

import json
import os
import pathlib
import subprocess
import sys
import time

from tests.launch.conftest import write_program

WHERE = ("--name=pod", "--project=mine", "--zone=here")
NEW = (*WHERE, "--accelerator-type=v5litepod-8", "--poll=0")
SPOT = (*NEW, "--spot", "--bucket=gs://bucket")
RUN = ("--", "--config=configs/digits.py")
ARGUMENTS = ["--config=a b.py", '--config.name=it\'s "x" $HOME', "*", ""]

# A host's system Python: makes a virtual environment whose Python runs the test's `main`.
PYTHON3 = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$SLICE/main" "$3/bin/python"
fi
"""

MAIN = """#!/usr/bin/env bash
[ "$2" != pip ] || exit 0
echo >>"$SLICE/starts"
start=$(wc -l <"$SLICE/starts")
mkdir -p runs/digits
echo "$start" >>runs/digits/metrics.jsonl
host=$(basename "$HOME")
printf "<%s>" "$@" >"$SLICE/arguments-$host"
echo "$host at start $start"
"""

# Ends at a signal, as a run does, or once the test says so.
UNTIL_TOLD = """
trap 'exit 75' TERM
until [ -e $SLICE/go ]; do sleep 0.05; done
"""


class Slice:
    """The stand-in's slice; see fake_gcloud.py."""

    def __init__(self, folder: pathlib.Path, checkout: pathlib.Path):
        self.folder, self.checkout = folder, checkout
        self.environment = os.environ | {
            "SLICE": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
        }
        (folder / "bin").mkdir(parents=True)
        gcloud = pathlib.Path(__file__).parent / "fake_gcloud.py"
        write_program(
            folder / "bin" / "gcloud", f'#!/bin/sh\nexec {sys.executable} -IS {gcloud} "$@"\n'
        )
        write_program(folder / "bin" / "python3", PYTHON3)
        write_program(folder / "bin" / "mountpoint", "#!/bin/sh\nexit 1\n")
        for name in ("gcsfuse", "sudo"):
            write_program(folder / "bin" / name, f'#!/bin/sh\necho "$@" >>$SLICE/{name}\n')
        self.has(states="ABSENT", coming="ACTIVE", hosts="1", broken="")
        self.main("")

    def has(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def main(self, text: str) -> None:
        """Sets what the run does after noting that it was started."""
        write_program(self.folder / "main", MAIN + text)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.checkout / "launch" / "tpu_pod.sh"), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def temporary(self) -> list[pathlib.Path]:
        """Returns the temporary files that the script left behind."""
        return list(self.folder.glob("moco_jax*")) + list(self.folder.glob("tmp*"))

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.end(self.start(*arguments))

    def end(self, process: subprocess.Popen) -> subprocess.CompletedProcess:
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def wait_for(self, call: str, times: int = 1) -> None:
        until = time.monotonic() + 300
        while self.did().count(call) < times:
            assert time.monotonic() < until, self.did()
            time.sleep(0.02)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    def did(self) -> list[str]:
        """Returns the calls in short: create, scp, `ssh start` and so on, without the looks."""
        short = []
        for call in self.calls():
            [command] = [word for word in call if word.startswith("--command=")] or [""]
            asked = [word for word in ASKED if f"tpu_worker.sh {word}" in command]
            short.append(" ".join([call[3], *asked]))
        return [name for name in short if name != "describe"]

    def starts(self) -> int:
        return self.did().count("ssh start")


ASKED = ("prepare", "start", "running", "follow", "finish", "stop")
ONE_RUN = ["scp", "ssh prepare", "ssh start", "ssh follow", "ssh finish"]
