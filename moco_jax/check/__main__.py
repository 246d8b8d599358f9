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
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from absl import flags

from moco_jax import configs
from moco_jax.check import arithmetic, decoding, findings, links, machine, speed, survival
from moco_jax.check.findings import Finding, Verdict
from moco_jax.parallel import cluster
from moco_jax.terminal import command_line, processes, progress, style

flags.adopt_module_key_flags(processes)
_JSON = flags.DEFINE_string(
    "json", "moco_jax_check.json", "File for the results, to attach to a report; '' for none."
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder on the disk that runs are saved to; default that of temporary files."
)
_FORMAT = "moco_jax check"
_REASON = 300  # characters of an error that are shown

_Checks = Iterator[Finding]


def main() -> int:
    """Prints the findings; returns 1 if one is wrong, else 0."""
    file = _checked_file(_JSON.value)
    _check_folder(_FOLDER.value)
    begun, found = time.perf_counter(), []
    for finding in _findings():
        finding = _agreed(finding)
        found.append(finding)
        cluster.say(findings.line(finding, style.width()))
    seconds = time.perf_counter() - begun
    cluster.say(f"{findings.summary(found)}; took {seconds:.0f} s")
    if file and cluster.is_first():
        file.write_text(json.dumps(_record(found, seconds), indent=1) + "\n")
        cluster.say(f"the results are in {file}; attach this file to a report")
    return int(findings.worst(found) is Verdict.WRONG)


def _findings() -> _Checks:
    """Yields the findings; a kill comes first, because its runs need the devices."""
    yield from _guarded("kill and resume", "running, killing and resuming", _survival)
    yield from _guarded("machine", "looking at the devices", lambda: iter([machine.check()]))
    yield from _guarded("steps", "compiling and running steps", arithmetic.check)
    one = lambda work: lambda: iter([work()])  # noqa: E731
    yield from _guarded(
        "all devices", "comparing with one device", one(lambda: arithmetic.check_devices())
    )
    yield from _guarded("links", "timing the links", one(links.check))
    yield from _guarded("speed", "compiling and timing training steps", _speed)


def _guarded(name: str, text: str, check: Callable[[], _Checks]) -> _Checks:
    """Yields the findings of a check, or one that names its error."""
    found = iter(())
    try:
        with progress.phase(text):
            found = check()
            first = next(found, None)
        while first is not None:
            yield first
            with progress.phase(text):
                first = next(found, None)
    except (RuntimeError, ValueError, OSError) as error:  # JAX raises RuntimeErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:_REASON]
        yield Finding(name, Verdict.WRONG, f"the check failed: {reason}", _advice(reason))


def _advice(reason: str) -> str:
    if "RESOURCE_EXHAUSTED" in reason:
        return "another program may use the memory of the devices: look at nvidia-smi"
    return "report this line and the JSON file"


def _survival() -> _Checks:
    if jax.distributed.is_initialized():
        text = "not run on several processes; kill a run and start it again"
        yield Finding("kill and resume", Verdict.SKIPPED, text)
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moco_jax_check_", dir=_FOLDER.value))
    try:
        yield survival.check(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _speed() -> _Checks:
    timed = [speed.check(step) for step in speed.prepare_all()]
    yield from timed
    rate = timed[0].values["images_per_second"]
    yield decoding.check(configs.imagenet.get_config("v2").data, rate)


def _agreed(finding: Finding) -> Finding:
    """Returns a finding, with the worst verdict of all processes."""
    order = list(Verdict)
    worst = order[cluster.largest(order.index(finding.verdict))]
    if worst is finding.verdict:
        return finding
    text = f"another process finds this {worst.value}; here: {finding.text}"
    return Finding(finding.name, worst, text, finding.advice, finding.values)


def _record(found: list[Finding], seconds: float) -> dict:
    """Returns the results as JSON encodes them."""
    fields = ("name", "text", "advice", "values")
    lines = [{"verdict": f.verdict.value} | {k: getattr(f, k) for k in fields} for f in found]
    return {"format": _FORMAT, "seconds": round(seconds, 1), "findings": lines}


def _checked_file(path: str) -> pathlib.Path | None:
    """Returns the file for the results.

    Raises:
      ValueError: if it can't be written, or is a file of something else.
    """
    if not path:
        return None
    file = pathlib.Path(path).expanduser()
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--json={path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--json={path}: permission denied to write in {folder}")
    if file.exists() and not _is_ours(file):
        raise ValueError(f"--json={path}: the file exists and has other contents; give another one")
    return file


def _is_ours(file: pathlib.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_bytes())
        return isinstance(content, dict) and content.get("format") == _FORMAT
    return False


def _check_folder(folder: str | None) -> None:
    """Raises a ValueError unless files can be written to the folder."""
    if folder is None:
        return
    if not os.path.isdir(folder):
        raise ValueError(f"--folder={folder}: there is no such folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--folder={folder}: permission denied to write there")


if __name__ == "__main__":
    command_line.run_main(main, config="none", join=processes.joined, interrupted="stopped")
