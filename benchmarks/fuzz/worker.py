"""Reads inputs in a process of its own, which the parent ends when it hangs."""

import contextlib
import functools
import io
import logging
import os
import pathlib
import random
import re
import resource
import shutil
import stat
import sys
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import NamedTuple

from absl import flags
from absl import logging as absl_logging

from benchmarks.fuzz import judges, kinds, readers
from benchmarks.fuzz.judges import Content, Read
from benchmarks.fuzz.kinds import Mutation
from moco_jax import text

MEMORY = 4 << 30  # bytes that an input may take beside those of the imported libraries
_LONGEST = 4000  # characters of a message that a person reads
_ALLOWED = (ValueError, OSError, ModuleNotFoundError)
_CANARY = "evil_module"  # only an input names it
# Events of Python's audit hooks that no input may cause.
_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
)
_seen: list[str] = []


class UnreadableOriginal(Exception):
    """The package refuses a valid file."""


class Result(NamedTuple):
    """The outcome of one input.

    Attributes:
      outcome: one of `OUTCOMES` in the command.
      label: what was done to the original.
      detail: the message, or what is wrong.
    """

    outcome: str
    label: str
    detail: str


def serve(connection: Connection, folder: pathlib.Path, seed: int) -> None:
    """Sends "ready"; answers (kind, number) with the fields of a `Result`."""
    # Libraries print to the descriptor; what a user would see is captured for each input.
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    flags.FLAGS(["fuzz"])
    sys.addaudithook(_note_event)
    (folder / f"{_CANARY}.py").write_text("class Evil: pass\n")
    sys.path.insert(0, str(folder))
    limited = False
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            kind, number = connection.recv()
            if not limited:
                _limit_memory()
                limited = True
            try:
                connection.send(tuple(run(folder, seed, kind, number)))
            except Exception:  # of this program: the parent ends with it
                connection.send(traceback.format_exc())


def _limit_memory() -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _note_event(event: str, arguments: tuple) -> None:
    if event in _EVENTS:
        _seen.append(f"{event} {str(arguments)[:80]}")
    elif event == "import" and str(arguments[0]).startswith(_CANARY):
        _seen.append(f"import {arguments[0]}")


def run(folder: pathlib.Path, seed: int, kind: str, number: int) -> Result:
    """Makes an input, reads it and judges the result.

    Args:
      folder: has `originals/<kind>`; failed inputs are kept in `failures`.
    """
    rng = random.Random(f"{seed}/{kind}/{number}")
    original = rng.choice(sorted((folder / "originals" / kind).iterdir()))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        place = pathlib.Path(made) / "input"
        shutil.copytree(original, place)
        mutation = kinds.mutate(kind, rng, place)
        kept = pathlib.Path(made) / "kept"
        _keep(place, kept)
        try:
            result = _judged(kind, original, place, mutation)
        except UnreadableOriginal as refused:
            result = Result("POOR", "nothing", str(refused))
        if result.outcome.isupper():
            target = folder / "failures" / f"{kind}-{number}"
            shutil.rmtree(target, ignore_errors=True)
            _keep(kept, target)
    return result


def _keep(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies regular files below a gigabyte, folders and links."""

    def skipped(folder: str, names: list[str]) -> list[str]:
        found = {name: os.lstat(os.path.join(folder, name)) for name in names}
        return [
            name
            for name, entry in found.items()
            if stat.S_ISFIFO(entry.st_mode) or entry.st_size > 2**30
        ]

    shutil.copytree(source, target, symlinks=True, ignore=skipped)


def _judged(kind: str, original: pathlib.Path, place: pathlib.Path, made: Mutation) -> Result:
    before, said = _contents(kind, original)
    older, _ = _contents(kind, original, older=True)
    _seen.clear()
    error, after, told = _read(kind, place)
    new = "\n".join(line for line in told.splitlines() if _plain(line) not in said)
    label = made.label
    if _seen:
        return Result("EXECUTED", label, _seen[0])
    if "Traceback (most recent call last)" in told:
        return Result("TRACEBACK", label, told[-1500:])
    if error is not None:
        return _of_error(kind, label, error, new, place, made)
    problem = judges.silent(kind, Read(made, before, older, after, new))
    if problem:
        return Result("SILENT", label, problem)
    if not judges.difference(before, after):
        return Result("same", label, new)
    return Result("told" if new else "legal", label, new or judges.difference(before, after))


def _of_error(
    kind: str, label: str, error: BaseException, said: str, place: pathlib.Path, made: Mutation
) -> Result:
    """Returns the outcome of a read that raised: its message must name the file and be short."""
    if isinstance(error, SystemExit) and error.code == 2:
        message = said  # the command has printed it
    elif isinstance(error, _ALLOWED):
        message = text.message(str(error))  # as `command_line.fail` prints it
    else:
        return Result("TRACEBACK", label, "".join(traceback.format_exception(error))[-2500:])
    names = (made.file.name, *(path.name for path in place.iterdir()))
    named = [str(place), *(name for name in names if len(name) > 4)]
    if kind in ("overrides", "config_file"):
        named = ["config", "epochs", "task="]
    if not any(name in message for name in named):
        return Result("POOR", label, f"names no file: {type(error).__name__}: {message[:600]}")
    if len(message) > _LONGEST:
        return Result("POOR", label, f"{len(message)} characters: {message[:300]}")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message):
        return Result("POOR", label, f"control characters: {message[:600]!r}")
    return Result("error", label, message[:300])


@functools.cache
def _contents(kind: str, original: pathlib.Path, older: bool = False) -> tuple[Content, frozenset]:
    """Returns what an original contains, and the lines that its read prints.

    With `older`, what it contains without its latest checkpoint; {} if it has none.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        place = pathlib.Path(made) / "input"
        shutil.copytree(original, place)
        if older:
            steps = sorted(place.glob("run/checkpoints/*"), key=lambda path: int(path.name))
            if not steps:
                return {}, frozenset()
            shutil.rmtree(steps[-1])
        if kind == "overrides":
            return {}, frozenset()
        error, content, said = _read(kind, place)
        if error is not None:
            raise UnreadableOriginal(f"the original {original} can't be read: {error}") from error
        return content, frozenset(map(_plain, said.splitlines()))


def _plain(line: str) -> str:
    """Returns a printed line without paths, numbers and times."""
    return re.sub(r"\S*/\S*|\d+", "", line)


class _Lines(logging.Handler):
    def __init__(self, stream: io.TextIOBase):
        super().__init__(logging.WARNING)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        self._stream.write(self.format(record) + "\n")


def _read(kind: str, place: pathlib.Path) -> tuple[BaseException | None, Content, str]:
    """Returns the error of a read or None, what it returned, and all its messages."""
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(raw_out, "utf-8", write_through=True)
    err = io.TextIOWrapper(raw_err, "utf-8", write_through=True)
    text.print_escaped(out)
    text.print_escaped(err)
    handler, error, content = _Lines(err), None, {}
    loggers = (logging.getLogger(), absl_logging.get_absl_logger())
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            content = readers.READERS[kind](place)
    except (Exception, SystemExit) as raised:
        error = raised
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    said = (raw_out.getvalue() + raw_err.getvalue()).decode("utf-8", "replace")
    return error, content, said
