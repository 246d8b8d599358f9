"""Checks this machine: whether training is right here, and how fast it is.

    python -m moco_jax.check --json=check.json
    python -m moco_jax.check --json= --folder=/data/runs

It prints a line for each check: ok, slow or wrong, and what to do. It takes less than 3 minutes.

- machine: whether JAX uses the accelerator that is there.
- kill and resume: a real run is killed and started again; it must end as one that was not killed.
- queue, end-to-end, memory bank, v3 with ViT, masked: five steps of each mechanism, compared with
  float64; two of them also in bfloat16.
- NaN guard: a NaN in an image must be seen.
- all devices: all devices together must compute what one computes.
- links: rates of the collectives between the devices.
- ResNet-50 and ViT-S: images/s of a training step, and what is expected of this chip.
- decoding: whether the host decodes images as fast as the devices train on them.

On a CPU the timed steps are those of small networks. On several processes the kill is left out.
The exit code is 1 if something is wrong, else 0.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags

from moco_jax import configs, text
from moco_jax.check import arithmetic, decoding, findings, links, machine, speed, survival
from moco_jax.check.findings import Finding, Verdict
from moco_jax.parallel import cluster
from moco_jax.terminal import command_line, processes, progress, signals, style
from moco_jax.training.outputs import appending

flags.adopt_module_key_flags(processes)
_JSON = flags.DEFINE_string(
    "json", "moco_jax_check.json", "File for the results, to attach to a report; '' for none."
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder on the disk that runs are saved to; default that of temporary files."
)
_FORMAT = "moco_jax check"

_Checks = Iterator[tuple[str, Callable[[], Finding]]]  # names and checks


def main() -> int:
    """Prints the findings; returns 1 if one is wrong, else 0."""
    if jax.distributed.is_initialized() and not (opened := machine.check()).values:
        raise ValueError(f"{opened.text}; {opened.advice}")  # it could agree on nothing
    file = _checked_file(_JSON.value) if _is_first() else None
    folder = _checked_folder(_FOLDER.value)
    begun, found = time.perf_counter(), []
    for finding in _findings(folder):
        finding = _agreed(finding)
        found.append(finding)
        _say(findings.line(finding, style.width()))
    seconds = time.perf_counter() - begun
    _say(f"{findings.summary(found)}; took {seconds:.0f} s")
    if file:
        with command_line.naming(f"--json={_JSON.value}"):
            content = json.dumps(_encodable(_record(found, seconds)), indent=1)
            appending.write_whole(file, f"{content}\n".encode())
        _say(text.message(f"the results are in {file}; attach this file to a report"))
    return int(findings.worst(found) is Verdict.WRONG)


def _is_first() -> bool:
    """Returns whether this is process 0. It does not open the devices of a single process."""
    return not jax.distributed.is_initialized() or cluster.is_first()


def _say(line: str) -> None:
    """Prints a line, which may have colour, on process 0."""
    if _is_first():
        style.say(line)


def _findings(folder: str | None) -> Iterator[Finding]:
    """Yields the findings; a kill comes first, because its runs need the devices.

    All processes yield as many: each finding is agreed upon.
    """
    yield from _attempted("running, killing and resuming", _survival(folder))
    for finding in _attempted("opening the devices", iter([("machine", machine.check)])):
        yield finding
        if not finding.values:  # they can't be opened
            return
    yield from _attempted("compiling and running steps", arithmetic.checks())
    devices: _Checks = iter([("all devices", arithmetic.check_devices)])
    yield from _attempted("comparing with one device", devices, together=True)
    yield from _attempted("timing the links", iter([("links", links.check)]), together=True)
    yield from _attempted("compiling and timing training steps", _speed(), together=True)


def _attempted(doing: str, checks: _Checks, *, together: bool = False) -> Iterator[Finding]:
    """Yields the finding of each check, or one that names its error.

    Args:
      doing: what is shown meanwhile.
      checks: names and checks.
      together: whether the processes wait for each other in a check.

    Raises:
      ValueError: if such a check fails on one of several processes: the others would wait forever.
    """
    while True:
        with progress.phase(doing):
            name, check = next(checks, ("", None))
            if check is None:
                return
            finding = findings.attempt(name, check)
        if together and finding.failed and jax.process_count() > 1:
            raise ValueError(
                f"{name}: {finding.text}. Process {jax.process_index()} ends, since the others "
                "would wait for it"
            )
        yield finding


def _survival(folder: str | None) -> _Checks:
    yield "kill and resume", lambda: _survives(folder)


def _survives(folder: str | None) -> Finding:
    if jax.distributed.is_initialized():
        what = "not run on several processes; kill a run and start it again"
        return Finding("kill and resume", Verdict.SKIPPED, what)
    runs = pathlib.Path(tempfile.mkdtemp(prefix="moco_jax_check_", dir=folder))
    with signals.undone(lambda: shutil.rmtree(runs, ignore_errors=True)):
        return survival.check(runs)


def _speed() -> _Checks:
    rates = []

    def timed(check: Callable[[], Finding]) -> Finding:
        finding = check()
        rates.append(finding.values["images_per_second"])
        return finding

    for name, check in speed.checks():
        yield name, functools.partial(timed, check)
    yield "decoding", lambda: _decoding(rates)


def _decoding(rates: list[float]) -> Finding:
    if not rates:
        return Finding("decoding", Verdict.SKIPPED, "no step was timed, so no rate is needed")
    return decoding.check(configs.imagenet.get_config("v2").data, rates[0])


def _agreed(finding: Finding) -> Finding:
    """Returns a finding, with the worst verdict of all processes.

    A process that is not the first prints its own finding if it is not as it should be.
    """
    if not jax.distributed.is_initialized():
        return finding
    if finding.verdict in (Verdict.SLOW, Verdict.WRONG) and not _is_first():
        style.say(f"process {jax.process_index()}: {findings.line(finding, style.width())}")
    order = list(Verdict)
    worst = order[cluster.largest(order.index(finding.verdict))]
    if worst is finding.verdict:
        return finding
    elsewhere = f"another process finds this {worst.value}, see its output; here: {finding.text}"
    return Finding(finding.name, worst, elsewhere, finding.advice, finding.values)


def _record(found: list[Finding], seconds: float) -> dict:
    """Returns the results as JSON encodes them."""
    fields = ("name", "text", "advice", "values")
    lines = [{"verdict": f.verdict.value} | {k: getattr(f, k) for k in fields} for f in found]
    return {"format": _FORMAT, "seconds": round(seconds, 1), "findings": lines}


def _encodable(value: Any) -> Any:
    """Returns a value with texts in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _encodable(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_encodable(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _checked_file(path: str) -> pathlib.Path | None:
    """Returns the file for the results.

    Raises:
      ValueError: if it can't be written, or is a file of something else.
    """
    if not path:
        return None
    file = command_line.on_disk(path, "--json")
    command_line.check_out(file, "--json")
    if file.exists() and not _is_ours(file):
        raise ValueError(f"--json={path}: the file exists and has other contents; give another one")
    return file


def _is_ours(file: pathlib.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_bytes())
        return isinstance(content, dict) and content.get("format") == _FORMAT
    return False


def _checked_folder(path: str | None) -> str | None:
    """Returns the folder for the runs, None for the default.

    Raises:
      ValueError: if files can't be written to it.
    """
    if path is None:
        return None
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder):
        raise ValueError(f"--folder={path}: there is no such folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--folder={path}: permission denied to write there")
    return folder


if __name__ == "__main__":
    command_line.run_main(main, config="none", join=processes.joined, interrupted="stopped")
