"""What the commands share: the flag --config, its parsing, tables, and errors in one message."""

import csv
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")

FORMS = ("table", "csv", "json")  # of `tell`


def config() -> ConfigDict:
    """Returns the experiment that was asked for, with what the command line changes in it."""
    quieten()
    value = _CONFIG.value
    if not isinstance(value, ConfigDict):
        fail(f"{_file()}: get_config() must return a ConfigDict, got {type(value).__name__}")
    # The length given on the command line takes the place of the config file's.
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if "steps" in given and "epochs" not in given:
        value.epochs = None
    elif "epochs" in given and "steps" not in given:
        value.steps = None
    return value


def has_config() -> bool:
    """Returns whether an experiment was given."""
    return bool(flags.FLAGS["config"].present)


def quieten() -> None:
    """Leaves only warnings of the log, unless --verbosity says otherwise."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells each save in 30 lines


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, an error of theirs in one line; for `absl.app.run`."""
    rest = parse_without_config(argv)
    if not has_config():
        fail("give an experiment, such as --config=configs/digits.py")
    return rest


def parse_without_config(argv: list[str]) -> list[str]:
    """Parses the flags of a command to which an experiment need not be given."""
    try:
        rest = flags.FLAGS(argv)
        path = pathlib.Path(_file().partition(":")[0]) if has_config() else None
        if path and not path.is_file():
            fail(f"there is no config file {path}")
        if len(rest) > 1:
            fail(f"unexpected arguments: {' '.join(rest[1:])}")
        return rest
    except flags.Error as error:
        # ml_collections puts a config file's whole traceback into the message.
        head, _, trace = str(error).partition("Traceback (most recent call last):")
        fail(" ".join([head.strip(), *trace.strip().splitlines()[-1:]]))
    except Exception as error:  # whatever a config file may raise
        message = str(error.args[0] if error.args else error)
        # ml_collections lists every field of the config between the key and its suggestion.
        message = re.sub(
            r"Other fields present:.*?(?=Did you mean|$)", "", message, flags=re.DOTALL
        )
        fail(f"{type(error).__name__} in {' '.join(argv[1:])}: {message}")


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


def tell(rows: Iterable[Sequence[Any]], columns: Sequence[str], form: str) -> None:
    """Prints rows as they come: as an aligned `table`, as `csv`, or a line of `json` each.

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
