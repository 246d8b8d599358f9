"""What the commands share: the flag --config, its parsing, and errors in one message."""

import pathlib
import re
import sys
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")


def config() -> ConfigDict:
    """Returns the experiment that was asked for, with what the command line changes in it."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells each save in 30 lines
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


def parse(argv: list[str], *, experiment: bool = True) -> list[str]:
    """Parses the flags, an error of theirs in one line; for `absl.app.run`.

    Args:
      argv: the command line.
      experiment: whether --config must be given.
    """
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            path = pathlib.Path(_file().partition(":")[0])
            if not path.is_file():
                fail(f"there is no config file {path}")
        elif experiment:
            fail("give an experiment, such as --config=configs/digits.py")
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


def fail(message: str) -> NoReturn:
    """Ends the process with a message and the exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _file() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])
