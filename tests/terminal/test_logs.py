"""Warnings: plain lines, in commands and in Python programs."""

import logging
import subprocess
import sys

from moco_jax.terminal import logs

PROGRAM = """
import logging
from moco_jax.terminal import logs
if {set_up}:
    logging.basicConfig(level=logging.INFO)
logs.warning("skipped %s", "a\\x1b.jpg")
logging.getLogger("other").warning("of the program")
assert bool(logging.root.handlers) == {set_up}
"""


def test_warnings_of_a_program_are_plain_lines_and_leave_its_logging_alone():
    for set_up, other in ((True, "WARNING:other:of the program"), (False, "of the program")):
        program = PROGRAM.format(set_up=set_up)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stderr == f"warning: skipped a\\x1b.jpg\n{other}\n"


def test_records_of_libraries_have_no_prefix(capsys):
    root = logging.root
    before = root.handlers[:]
    try:
        logs.print_others(lambda record: record.name != "other")
        logging.getLogger("absl").warning("skipped %s", "a\x1b.jpg")
        logging.getLogger("absl").error("lost")
        logging.getLogger("other").warning("of a library")
    finally:
        root.handlers[:] = before
    assert capsys.readouterr().err == "warning: skipped a\\x1b.jpg\nerror: lost\n"
