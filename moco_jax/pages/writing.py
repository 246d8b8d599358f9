"""Writes the report file."""

import os
import pathlib
from collections.abc import Callable, Sequence

from moco_jax.pages.record import read
from moco_jax.terminal import command_line, logs, progress, signals
from moco_jax.terminal.paths import is_url

FILE = "report.html"
IMAGES = 2000  # on the map


def place(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the file of the report of a workdir, in the current folder if it is in a bucket."""
    if is_url(os.fspath(workdir)):
        name = os.fspath(workdir).rstrip("/").rpartition("/")[2]
        return pathlib.Path(f"{name}_{FILE}")
    return pathlib.Path(workdir).expanduser() / FILE


def check(out: pathlib.Path) -> None:
    """Raises a ValueError unless a page can be written there, before any work for it."""
    if out.suffix != ".html":
        raise ValueError(f"--out={out} must end in .html")
    command_line.check_out(out)


def write(
    folders: Sequence[pathlib.Path], out: pathlib.Path, *, views: bool = True, images: int = 0
) -> None:
    """Writes the report of workdirs; it replaces a file as a whole.

    Args:
      folders: workdirs.
      out: the file.
      views: whether images are read and their views drawn, which takes seconds.
      images: most images of the first run whose features are shown; 0: none.

    Raises:
      ValueError: for a folder without a run.
      OSError: if the file can't be written.
    """
    from moco_jax.pages import document  # imports Bokeh

    replace(out, lambda: document.page(read(folders), views=views, images=images))


def replace(out: pathlib.Path, page: Callable[[], str]) -> None:
    """Writes a page to a file as a whole.

    Raises:
      OSError: if the file can't be written.
    """
    unfinished = out.with_name(f"{out.name}.unfinished")
    with signals.unfinished(unfinished), progress.phase("writing the report"):
        unfinished.write_text(page())
        os.replace(unfinished, out)


def write_at_end(folder: pathlib.Path, *, views: bool) -> pathlib.Path | None:
    """Writes the report of a run that ends; returns the file. A failure is a warning."""
    try:
        write([folder], folder / FILE, views=views, images=IMAGES if views else 0)
    except Exception as error:  # nothing that is only shown fails a run
        logs.warning("the report is not written: %s: %s", type(error).__name__, error)
        return None
    return folder / FILE
