"""What the commands share: the flag --config, error messages, exit codes and tables."""

import contextlib
import csv
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moco_jax.parallel import cluster, roll_call

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")

FORMATS = ("table", "csv", "json")  # of `print_rows`


def run_main(
    work: Callable[[], int | None],
    *,
    config: Literal["required", "optional", "none"] = "required",
    join: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    errors: Sequence[type[Exception]] = (),
    interrupted: str = "interrupted",
) -> NoReturn:
    """Parses the flags, runs a command and exits with its code.

    An OSError, a ValueError or a ModuleNotFoundError is a problem that the user can solve: its
    message is printed, and the exit code is 2. With --verbosity=1 the traceback is printed instead.

    Args:
      work: the command; returns the exit code, None for 0.
      config: whether the command needs --config.
      join: the context in which the command runs, such as `cluster.joined`.
      errors: more exceptions that are printed as messages.
      interrupted: the message after Ctrl-C; the exit code is 130.
    """

    def main(_) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs each save in 30 lines
        code = 0
        try:
            with join():
                code = _run(work, (OSError, ValueError, ModuleNotFoundError, *errors), interrupted)
        except cluster.WrongFlags as error:
            fail(str(error))
        except roll_call.Missing as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        if code:
            sys.stdout.flush()
            os._exit(code)  # a thread may be compiling, which nothing can stop

    app.run(main, flags_parser=lambda argv: _parse(argv, config))


def _run(work: Callable[[], int | None], errors: tuple, interrupted: str) -> int:
    """Returns the exit code of a command; ends the process with one message on an error."""
    try:
        return work() or 0
    except errors as error:
        if logging.level_debug():
            raise
        fail(f"{error}\n(--verbosity=1 prints the traceback)")
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def config(task: str = "") -> ConfigDict:
    """Returns the experiment with the changes of the command line; of one task, if it is given."""
    value = _CONFIG.value
    if not isinstance(value, ConfigDict):
        fail(f"{_file()}: get_config() must return a ConfigDict, got {type(value).__name__}")
    if task and value.get("task") != task:
        fail(f"--config={_file()}: this command needs task={task!r}, got {value.get('task')!r}")
    # A length on the command line replaces the length of the config file.
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if "steps" in given and "epochs" not in given:
        value.epochs = None
    elif "epochs" in given and "steps" not in given:
        value.steps = None
    return value


def has_config() -> bool:
    """Returns whether --config was given."""
    return bool(flags.FLAGS["config"].present)


def _parse(argv: list[str], config: str) -> list[str]:
    """Returns the arguments that are not flags; ends the process with a message on an error."""
    try:
        rest = flags.FLAGS(argv)
        path = pathlib.Path(_file().partition(":")[0]) if has_config() else None
        if path and not path.is_file():
            fail(f"--config={_file()}: there is no config file {path}")
        if len(rest) > 1:
            fail(f"unexpected arguments: {' '.join(rest[1:])}")
    except flags.Error as error:
        # ml_collections puts the whole traceback of a config file into the message.
        head, _, trace = str(error).partition("Traceback (most recent call last):")
        fail(" ".join([head.strip(), *trace.strip().splitlines()[-1:]]))
    except Exception as error:  # a config file may raise anything
        message = str(error.args[0] if error.args else error)
        # ml_collections lists every field of the config between the key and its suggestion.
        message = re.sub(r"(?s)Other fields present:.*?(?=Did you mean|$)", "", message)
        key = re.fullmatch(
            r"""[\\'"]*(\w+)[\\'"]*(?:(?:\\n|\s)*(Did you mean "\w+").*)?""", message
        )
        if key and isinstance(error, AttributeError | KeyError):
            hint = (
                f". {key[2]}?" if key[2] else "; moco_jax/config.py lists the keys of pretraining"
            )
            fail(f"{' '.join(argv[1:])}: there is no config key {key[1]!r}{hint}")
        fail(f"{type(error).__name__} in {' '.join(argv[1:])}: {message}")
    if config == "required" and not has_config():
        fail("--config must be given, such as --config=configs/digits.py")
    if config == "none" and has_config():
        fail(f"--config={_file()}: this command takes no config")
    return rest


def numbers(flag: flags.FlagHolder[Any], kind: type[int] | type[float]) -> list[Any]:
    """Returns the values of a flag that lists numbers above 0, such as --k=10,20."""
    try:
        values = [kind(text) for text in flag.value]
    except ValueError:
        values = []
    if not values or not all(value > 0 for value in values):
        what = "whole numbers" if kind is int else "numbers"
        fail(f"--{flag.name} must be {what} above 0, such as 1,2; got {','.join(flag.value)!r}")
    return values


def print_rows(rows: Iterable[Sequence[Any]], columns: Sequence[str], form: str) -> None:
    """Prints rows as an aligned `table`, as `csv`, or as one line of `json` each.

    Floating-point numbers are rounded to 4 places.
    """
    rows = ([round(x, 4) if isinstance(x, float) else x for x in row] for row in rows)
    if form == "json":
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True))))
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(itertools.chain([columns], rows))
    else:
        texts = [list(columns), *([str(x) for x in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for text in texts:
            padded = (x.ljust(width) for x, width in zip(text, widths, strict=True))
            print("  ".join(padded).rstrip())


def fail(message: str) -> NoReturn:
    """Ends the process with a message and the exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _file() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])
