"""Runs `python -m MODULE` and prints the modules that it has imported."""

import contextlib
import io
import runpy
import sys

if __name__ == "__main__":
    module = sys.argv.pop(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    print("\n".join(sys.modules))
