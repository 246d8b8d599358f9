"""Pretrains from the command line: `python -m moco_jax.main --config=configs/digits.py`.

This file is kept short: flags, and one call.
"""

import pathlib
import re
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moco_jax import pretrain

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config.name>.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _fail(f"unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells each save in 30 lines
    config = _CONFIG.value
    if not isinstance(config, ConfigDict):
        _fail(f"{_file()}: get_config() must return a ConfigDict, got {type(config).__name__}")
    _one_length(config)
    try:
        pretrain.pretrain(config, _WORKDIR.value or f"runs/{config.name}")
    except (OSError, ValueError, pretrain.NotFinite) as error:
        if logging.level_debug():
            raise
        _fail(f"{error}\n(--verbosity=1 shows where)")
    except pretrain.Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("\nstopped; what follows the last checkpoint is not saved", file=sys.stderr)
        sys.exit(130)


def _one_length(config) -> None:
    """Lets the length given on the command line take the place of the config file's."""
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if "steps" in given and "epochs" not in given:
        config.epochs = None
    elif "epochs" in given and "steps" not in given:
        config.steps = None


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, an error of theirs in one line."""
    try:
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["config"].present:
            _fail("give an experiment, such as --config=configs/digits.py")
        path = pathlib.Path(_file().partition(":")[0])
        if not path.is_file():
            _fail(f"there is no config file {path}")
        return rest
    except flags.Error as error:
        # ml_collections puts a config file's whole traceback into the message.
        head, _, trace = str(error).partition("Traceback (most recent call last):")
        _fail(" ".join([head.strip(), *trace.strip().splitlines()[-1:]]))
    except Exception as error:  # whatever a config file may raise
        message = str(error.args[0] if error.args else error)
        # ml_collections lists every field of the config between the key and its suggestion.
        message = re.sub(
            r"Other fields present:.*?(?=Did you mean|$)", "", message, flags=re.DOTALL
        )
        _fail(f"{type(error).__name__} in {' '.join(argv[1:])}: {message}")


def _file() -> str:
    """Returns the experiment that was asked for."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run() -> None:
    """The entry point of `python -m moco_jax.main` and of the `moco-jax` command."""
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
