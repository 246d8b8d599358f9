"""Writes the report of a run: one HTML file that opens without a network.

    python -m moco_jax.report --workdir=runs/digits
    python -m moco_jax.report --workdir=runs/a,runs/b --out=compare.html

The page has the verdict, the curves of training and health with what good and bad look like, and
the configuration. Several workdirs are compared: their curves lie over each other.
"""

import pathlib

from absl import flags

from moco_jax.pages import writing
from moco_jax.pages.record import read
from moco_jax.terminal import command_line

_WORKDIR = flags.DEFINE_list("workdir", None, "Workdirs of runs, separated by commas.")
_OUT = flags.DEFINE_string("out", None, "File to write; default report.html in the first workdir.")
_IMAGES = flags.DEFINE_integer(
    "images",
    writing.IMAGES,
    "Most images of the first run on the map of its features; 0: no map.",
    lower_bound=0,
    upper_bound=10_000,
)


def main() -> None:
    if not _WORKDIR.value:
        command_line.fail("--workdir must be given, such as --workdir=runs/digits")
    if not writing.can_write():
        command_line.fail("the report needs Bokeh: pip install bokeh")
    folders = [pathlib.Path(folder) for folder in _WORKDIR.value]
    first = read(folders)[0].folder
    out = pathlib.Path(_OUT.value).expanduser() if _OUT.value else first / writing.FILE
    if out.suffix != ".html":
        command_line.fail(f"--out={out} must end in .html")
    command_line.check_out(out)
    writing.write(folders, out, images=_IMAGES.value)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    command_line.run_main(main, config="none")
