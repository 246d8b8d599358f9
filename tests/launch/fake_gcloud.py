"""Stands in for gcloud: notes its arguments, and keeps a slice whose hosts are folders.

The folder $SLICE holds
  calls.jsonl   the arguments of each call
  states        states of the slice, a line each; a look takes the first, but the last one stays
  coming        such lines for each creation to come, creations apart by an empty line
  hosts         how many there are
  broken        a line for each connection that is to follow the run, and breaks
  ends          if there, no host does anything, and each run ends as its line says: the codes of
                the hosts, and the state of the slice if it changes: `134 2 SUSPENDED`
"""

import json
import os
import pathlib
import sys

SLICE = pathlib.Path(os.environ["SLICE"])
OPTIONS = dict(word[2:].split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
WORDS = [word for word in sys.argv[1:] if not word.startswith("--")]


def main():
    with open(SLICE / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    return {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm describe": count,
        "tpu-vm scp": scp,
        "tpu-vm ssh": ssh,
    }[" ".join(WORDS[2:4])]()


def create():
    now, _, later = (SLICE / "coming").read_text().partition("\n\n")
    (SLICE / "states").write_text(now)
    (SLICE / "coming").write_text(later)
    for host in hosts():
        host.mkdir()


def describe():
    first, *rest = (SLICE / "states").read_text().split("\n")
    (SLICE / "states").write_text("\n".join(rest or [first]))
    if first == "ABSENT":
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    if first == "FORBIDDEN":
        print("ERROR: (gcloud) PERMISSION_DENIED: who are you?", file=sys.stderr)
        return 1
    print(first)


def delete():
    import shutil  # here, as below: tests make hundreds of calls, and most need none of it

    (SLICE / "states").write_text("ABSENT")
    for host in hosts():
        shutil.rmtree(host, ignore_errors=True)


def count():
    print(len(hosts()))


def scp():
    import shutil

    source, target = WORDS[4:]
    if source.startswith(WORDS[4].partition(":")[0] + ":"):
        source = hosts()[0] / source.partition(":")[2]
        if (SLICE / "ends").exists():
            source.mkdir(parents=True)
        shutil.copytree(source, pathlib.Path(target) / source.name, dirs_exist_ok=True)
    else:
        for host in chosen():
            shutil.copy(source, host / target.partition(":")[2])


def ssh():
    breaks = (SLICE / "broken").read_text()
    if OPTIONS["command"].endswith(" follow") and breaks:
        (SLICE / "broken").write_text(breaks[1:])
        return 255
    if (SLICE / "ends").exists():
        return ended()
    import subprocess

    running = [
        subprocess.Popen(
            ["bash", "-c", OPTIONS["command"]], cwd=host, env=os.environ | {"HOME": str(host)}
        )
        for host in chosen()
    ]
    return next(filter(None, [process.wait() for process in running]), 0)


def ended():
    first, _, later = (SLICE / "ends").read_text().partition("\n")
    codes = [word for word in first.split() if word.isdigit()]
    if " follow" in OPTIONS["command"]:
        if not first.split()[-1].isdigit():
            (SLICE / "states").write_text(first.split()[-1])
        return int(codes[0])
    if " finish" in OPTIONS["command"]:
        (SLICE / "ends").write_text(later)
        print(*[f"exit {code}" for code in codes], sep="\n")
    return int(" running" in OPTIONS["command"])


def hosts():
    return [SLICE / f"host{i}" for i in range(int((SLICE / "hosts").read_text()))]


def chosen():
    return hosts() if OPTIONS["worker"] == "all" else [hosts()[int(OPTIONS["worker"])]]


sys.exit(main())
