"""What the commands share: the flag --config, error messages, exit codes, signals and tables."""

import contextlib
import csv
import dis
import itertools
import json
import logging as standard_logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moco_jax import text
from moco_jax.parallel import cluster, devices, roll_call
from moco_jax.terminal import arguments, help, logs, signals, style
from moco_jax.terminal.paths import each, is_url, missing

FORMATS = ("table", "csv", "json")  # of `print_rows`
_LONGEST_LINE = 1000  # characters of a line of a message
_PACKAGE = str(pathlib.Path(text.__file__).parent)
_TRACEBACK = "(--verbosity=1 prints the traceback)"
_SHORTEST_CELL = 20  # characters to which a column of a table is shortened
# Keys of `data` that belong to the encoder, or to training alone.
_PREPARES = ("image_size", "eval_resize", "mean", "std", "may_change")
_PIPE_CLOSED = 141  # the exit code of other tools after SIGPIPE


def run_main(
    work: Callable[[], int | None],
    *,
    config: Literal["required", "optional", "recorded", "none"] = "required",
    join: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    errors: Sequence[type[Exception]] = (),
    interrupted: str = "interrupted",
    saves: bool = False,
) -> None:
    """Parses the flags, runs a command and ends the process with its code.

    An OSError, a ValueError or a ModuleNotFoundError is a problem that the user can solve: its
    message is printed, and the exit code is 2. With --verbosity=1 the traceback is printed instead;
    a line says so after an error of a library.
    Ctrl-C ends the command with one line and the code 130, SIGTERM with 143. If the reader of the
    standard output is gone (`| head`), the command ends without a message.

    Args:
      work: the command; returns the exit code, None for 0.
      config: whether the command needs --config. 'recorded': it is optional, and keys without it
        change a recorded config, see `images_config`.
      join: the context in which the command runs, such as `cluster.joined`.
      errors: more exceptions that are printed as messages.
      interrupted: the message after Ctrl-C.
      saves: whether the command saves its state after a signal, which may take long.
    """

    def main(_) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs each save in 30 lines
        if logging.level_debug():
            logs.LOGGER.setLevel(standard_logging.DEBUG)
        else:
            logs.print_others(_concerns_user)
        code = 0
        try:
            with join():
                code = _run(work, (OSError, ValueError, ModuleNotFoundError, *errors), interrupted)
        except SystemExit as end:
            if end.code not in (signals.INTERRUPTED, signals.TERMINATED):
                raise
            code = end.code
        except cluster.WrongFlags as error:
            fail(str(error))
        except roll_call.Missing as error:
            style.print_line(f"error: {error}", sys.stderr)
            code = 1
        if code:
            _flush()
            os._exit(code)  # a thread may be compiling, which nothing can stop

    text.print_escaped(sys.stdout)
    text.print_escaped(sys.stderr)
    cluster.print_text = style.say
    logging.get_absl_handler().addFilter(_escape_record)
    try:
        with signals.ending(interrupted, waits=saves):
            help.describe(work, config)
            app.run(main, flags_parser=lambda argv: _parse(argv, config))
    except (KeyboardInterrupt, signals.Terminated) as stop:
        os._exit(_stopped(stop, interrupted))
    except BrokenPipeError:
        os._exit(_PIPE_CLOSED)
    except SystemExit as end:
        _flush()
        raise end from None


def _run(work: Callable[[], int | None], errors: tuple, interrupted: str) -> int:
    """Returns the exit code of a command; ends the process with one message on an error."""
    try:
        code = work() or 0
        if not code:  # another code says more than that the output is lost
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _flush():
            raise  # of another pipe
        return _PIPE_CLOSED
    except errors as error:
        if logging.level_debug():
            raise
        fail(str(error) if _is_explained(error) else f"{error}\n{_TRACEBACK}")
    except (RuntimeError, AssertionError) as error:
        if logging.level_debug() or not devices.not_opened(error):
            raise
        fail(f"{devices.reason(error)}; {devices.advice()}")
    except (KeyboardInterrupt, signals.Terminated) as stop:
        # Not a return: `cluster.joined` would wait for the other processes.
        sys.exit(_stopped(stop, interrupted))


def _is_explained(error: Exception) -> bool:
    """Returns whether an error names its cause: our code raises it, or it names a file."""
    if isinstance(error, OSError) and error.filename:
        return True
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    if place is None:
        return False
    code = place.tb_frame.f_code
    raised = code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]  # not by what it calls
    return raised and code.co_filename.startswith(_PACKAGE)


def _stopped(stop: BaseException, interrupted: str) -> int:
    """Prints that a signal stopped the command; returns the exit code."""
    by_user = isinstance(stop, KeyboardInterrupt)
    message = str(stop) or interrupted  # the loop knows what is saved
    style.print_line(f"\n{message if by_user else 'terminated'}", sys.stderr)
    return signals.INTERRUPTED if by_user else signals.TERMINATED


def _flush() -> bool:
    """Writes what is printed; returns whether the standard output can be written."""
    try:
        sys.stdout.flush()
        return True
    except OSError:
        # Python flushes once more at its end, and would print a traceback.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
        return False


def _escape_record(record: Any) -> bool:
    """Makes the message of a log record printable: it may name files."""
    record.msg, record.args = text.message(record.getMessage()), ()
    return True


def _concerns_user(record: standard_logging.LogRecord) -> bool:
    """Returns whether a log record is no library's warning, which concerns the library's code."""
    ours = record.pathname.startswith(_PACKAGE) or "-packages" not in record.pathname
    shown = record.levelno >= standard_logging.ERROR or flags.FLAGS["verbosity"].present
    return bool(ours or shown)


def config(task: str = "") -> ConfigDict:
    """Returns the experiment with the changes of the command line; of one task, if it is given."""
    value, file = arguments.CONFIG.value, arguments.filename()
    if not isinstance(value, ConfigDict):
        fail(f"--config={file}: get_config() must return a ConfigDict, got {type(value).__name__}")
    if task and value.get("task") != task:
        fail(f"--config={file}: this command needs task={task!r}, got {value.get('task')!r}")
    # A length on the command line replaces the length of the config file.
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if "steps" in given and "epochs" not in given:
        value.epochs = None
    elif "epochs" in given and "steps" not in given:
        value.steps = None
    return value


def has_config() -> bool:
    """Returns whether --config was given."""
    return bool(flags.FLAGS["config"].present)


def images_config(recorded: ConfigDict, images: str | None, without: Iterable[str] = ()):
    """Returns a config whose `data` names the images that a command encodes.

    It is --config if that is given, or else a copy of the recorded config of the encoder, changed
    by each --config.data.KEY=VALUE. `images`, the value of --images, replaces its images.

    Args:
      recorded: of the encoder's run.
      images: see `image_changes`; None for those of the config.
      without: keys of `data` that have no effect on the command, besides those of `_PREPARES`.
    """
    changes = image_changes(images) if images else {}
    unused = {*_PREPARES, *without, *changes}
    try:
        allowed = sorted(f"data.{key}" for key in set(recorded.data) - unused)
        found = config() if has_config() else arguments.changed(recorded, allowed)
    except arguments.BadArguments as error:
        fail(str(error))
    if not has_config() and not changes and found.data.path == recorded.data.path:
        check_recorded_images(found.data.path)
    found.data.update(changes)
    return found


def on_disk(out: str, flag: str = "--out") -> pathlib.Path:
    """Returns the path of what a command writes, '~' expanded.

    Raises:
      ValueError: if it is a URL.
    """
    if is_url(out):
        raise ValueError(f"{flag}={out} must be on a disk; copy it to the bucket afterwards")
    return pathlib.Path(out).expanduser()


def check_out(out: pathlib.Path, flag: str = "--out") -> None:
    """Raises a ValueError unless a file can be written at the value of a flag, before any work."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{flag}={out}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{flag}={out}: permission denied to write in {folder}")
    if out.is_dir():
        raise ValueError(f"{flag}={out} is a folder; allowed: a file")


@contextlib.contextmanager
def opening(images: str | None) -> Iterator[Callable[[Iterable[str]], None]]:
    """Names --images in place of the key `data.path`, in errors of the block if it was given.

    Yields:
      `tell` that does the same.
    """
    renamed = lambda text: text.replace("--config.data.path", "--images") if images else text  # noqa: E731
    try:
        yield lambda lines: tell(map(renamed, lines))
    except (OSError, ValueError) as error:
        if renamed(str(error)) == str(error):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(renamed(str(error))) from error


def _parse(argv: list[str], config: str) -> list[str]:
    """Returns the arguments that are not flags; ends the process with a message on an error."""
    try:
        return arguments.parse(argv, config)
    except arguments.BadArguments as error:
        fail(str(error))


def numbers(flag: flags.FlagHolder[Any], kind: type[int] | type[float]) -> list[Any]:
    """Returns the values of a flag that lists numbers above 0, such as --k=10,20."""
    try:
        values = [kind(text) for text in flag.value]
    except ValueError:
        values = []
    if not values or not all(value > 0 and math.isfinite(value) for value in values):
        what = "whole numbers" if kind is int else "numbers"
        fail(f"--{flag.name} must be {what} above 0, such as 1,2; got {','.join(flag.value)!r}")
    return values


def image_changes(images: str) -> dict[str, str]:
    """Returns the keys of `data` that --images sets: a folder, a file, digits or tfds:<name>.

    Raises:
      FileNotFoundError: if there is no such file or folder.
    """
    if images == "digits" or images.startswith("tfds:"):
        return {"source": images, "path": ""}
    if absent := missing(images):
        raise FileNotFoundError(f"--images={images}: there is no file or folder {absent}")
    return {"source": "images", "path": each(str, images)}


def check_recorded_images(path: str) -> None:
    """Raises a FileNotFoundError if the images of an encoder's run are not there any more."""
    if path and (absent := missing(path)):
        raise FileNotFoundError(
            f"there is no file or folder {absent}, where the encoder's training images were: give "
            "--images"
        )


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Begins the errors of the block with the flag or key whose value is wrong."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{argument}: {error}") from error


def tell(lines: Iterable[str]) -> None:
    """Prints lines on the standard error of process 0: the standard output is for results."""
    if cluster.is_first():
        for line in lines:
            style.print_line(text.message(line), sys.stderr)


def print_rows(rows: Iterable[Sequence[Any]], columns: Sequence[str], form: str) -> None:
    """Prints rows as an aligned `table`, as `csv`, or as one line of `json` each.

    Floating-point numbers are rounded to 4 places; in a column of a table with numbers of 10 or
    more to 2, all to the same number of places. A text stands on one line, see `text.line`. On a
    terminal the longest texts of a table are shortened to its width.
    """
    rows = (list(map(_cell, row)) for row in rows)
    if form == "json":
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True))))
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(itertools.chain([columns], rows))
    else:
        by_column = list(zip(*rows, strict=True)) or [()] * len(columns)
        cells = [[name, *_aligned(x)] for name, x in zip(columns, by_column, strict=True)]
        widths = [max(map(len, column)) for column in cells]
        if style.is_terminal(sys.stdout):
            _shrink(widths, style.width() - 2 * (len(columns) - 1))
        for row in zip(*cells, strict=True):
            pairs = zip(row, widths, strict=True)
            print("  ".join(style.middle_cut(x, n).ljust(n) for x, n in pairs).rstrip())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return text.line(value) if isinstance(value, str) else value


def _aligned(column: Sequence[Any]) -> list[str]:
    """Returns the cells of a column as texts; its numbers have the same number of places."""
    numbers = [x for x in column if isinstance(x, float) and math.isfinite(x)]
    most = 2 if any(abs(x) >= 10 for x in numbers) else 4
    needed = (len(f"{x:.{most}f}".rstrip("0").partition(".")[2]) for x in numbers)
    places = max(1, *needed) if numbers else 0
    return [f"{x:.{places}f}" if isinstance(x, float) else str(x) for x in column]


def _shrink(widths: list[int], room: int) -> None:
    """Reduces the widest of the widths until their sum fits, or they are short."""
    while sum(widths) > room and max(widths) > _SHORTEST_CELL:
        widths[widths.index(max(widths))] -= 1


def fail(message: str) -> NoReturn:
    """Ends the process with a message and the exit code 2."""
    lines = text.message(message).splitlines() or [""]
    shown = (x if len(x) <= _LONGEST_LINE else f"{x[:_LONGEST_LINE]}..." for x in lines)
    style.print_line("error: " + "\n".join(shown), sys.stderr)
    sys.exit(2)
