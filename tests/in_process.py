"""Runs commands inside a process that has imported JAX: a new process needs seconds for it."""

import contextlib
import io
import json
import logging
import os
import pathlib
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import pytest
from absl import logging as absl_logging
from absl.testing import flagsaver

from moco_jax.terminal import command_line, logs


def exit_code(command: Callable[[], object], *arguments: str) -> int:
    """Returns the exit code of a command that calls `command_line.run_main`.

    Flags, signal handlers and the levels of loggers are restored. An exception that ends the
    process with a traceback is raised.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(flagsaver.flagsaver())
        stack.enter_context(warnings.catch_warnings())
        for number, handler in handlers.items():
            stack.callback(signal.signal, number, handler)
        stack.callback(setattr, logging.root, "handlers", list(logging.root.handlers))
        stack.callback(logs.LOGGER.setLevel, logs.LOGGER.level)
        stack.callback(absl_logging.set_verbosity, absl_logging.get_verbosity())
        warnings.filterwarnings("ignore", "the load_module")  # ml_collections calls it
        # ml_collections executes every config file in this module; names of an earlier file stay.
        sys.modules.pop("config_config", None)
        patch.setattr(sys, "argv", ["command", *arguments])
        patch.setattr(os, "_exit", sys.exit)
        # Without the set-up of logging, which would stay.
        patch.setattr(
            command_line.app, "run", lambda main, flags_parser: main(flags_parser(sys.argv))
        )
        try:
            command()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def run_all(
    repository: pathlib.Path, module: str, cases: Sequence[Sequence[str]], cwd: pathlib.Path
) -> list[tuple[int, str]]:
    """Runs `python -m module` with several arguments, one after the other in one new process.

    Returns:
      The exit code and the standard error of each.
    """
    from tests.conftest import run_command

    done = run_command(repository, "tests.in_process", module, json.dumps(cases), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [(code, printed) for code, printed in json.loads(done.stdout)]


def _run_one(module: str, arguments: Sequence[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            code = exit_code(lambda: runpy.run_module(module, run_name="__main__"), *arguments)
        except Exception:
            code = 1
            traceback.print_exc()
    return code, printed.getvalue()


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        results = [_run_one(sys.argv[1], arguments) for arguments in json.loads(sys.argv[2])]
    print(json.dumps(results))
