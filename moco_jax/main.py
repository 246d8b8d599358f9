"""Pretrains from the command line: `python -m moco_jax.main --config=configs/digits.py`.

This file is kept short: flags, and one call.
"""

import sys

from absl import app, flags, logging

from moco_jax import command_line, pretrain

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config.name>.")


def main(_) -> None:
    config = command_line.config()
    try:
        pretrain.pretrain(config, _WORKDIR.value or f"runs/{config.name}")
    except (OSError, ValueError, pretrain.NotFinite) as error:
        if logging.level_debug():
            raise
        command_line.fail(f"{error}\n(--verbosity=1 shows where)")
    except pretrain.Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("\nstopped; what follows the last checkpoint is not saved", file=sys.stderr)
        sys.exit(130)


def run() -> None:
    """The entry point of `python -m moco_jax.main` and of the `moco-jax` command."""
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
    run()
