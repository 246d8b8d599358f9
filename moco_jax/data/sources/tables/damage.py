"""Errors of pyarrow in words."""

import contextlib
import importlib.util
from collections.abc import Iterator

from moco_jax.data.sources.regular_file import from_disk
from moco_jax.text import shortened


@contextlib.contextmanager
def damage(path: str) -> Iterator[None]:
    """Makes every error of the block a ValueError that names the file; pyarrow raises many types.

    Errors of the disk stay.
    """
    try:
        yield
    except Exception as error:
        if from_disk(error):
            raise
        what = shortened(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or not complete: {what}") from error


@contextlib.contextmanager
def texts(where: str) -> Iterator[None]:
    """Makes the error for a text that is not UTF-8 one that names the data set."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is damaged: a text in it is not UTF-8") from error


def check_pyarrow(what: str) -> None:
    """Raises a ValueError with the command that installs pyarrow, if it is absent."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{what} needs pyarrow: pip install 'moco-jax[parquet]'")
