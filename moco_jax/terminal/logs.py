"""Warnings: plain lines on the standard error, in commands and in Python programs alike.

They come from the logger `moco_jax`, which passes nothing on to the loggers of a program. The
functions of absl's logging would set up the root logger.
"""

import logging
import sys
from collections.abc import Callable

from absl.logging import ABSLHandler

from moco_jax import text
from moco_jax.terminal import style

LOGGER = logging.getLogger("moco_jax")


class Lines(logging.Handler):
    """Prints log records as a user reads them: `warning: text`."""

    def emit(self, record: logging.LogRecord) -> None:
        name = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        style.print_line(f"{name}: {text.message(record.getMessage())}", sys.stderr)


def print_others(wanted: Callable[[logging.LogRecord], bool]) -> None:
    """Prints the wanted records of other loggers in the same way, not as absl's handler does."""
    for handler in list(logging.root.handlers):
        if isinstance(handler, (ABSLHandler, Lines)):
            logging.root.removeHandler(handler)
    lines = Lines()
    lines.addFilter(lambda record: record.name != LOGGER.name and wanted(record))
    logging.root.addHandler(lines)


LOGGER.addHandler(Lines())
LOGGER.setLevel(logging.WARNING)
LOGGER.propagate = False
warning, debug = LOGGER.warning, LOGGER.debug
