"""What --help prints for a command, and where --config finds an installed experiment."""

import inspect
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable

from absl import flags

from moco_jax import configs
from moco_jax.terminal import style

_WIDEST = 100  # columns of a paragraph, however wide the terminal is
_NAMES = 30  # widest column of names
_CONFIG = {  # the help of --config
    "required": "Experiment, such as configs/digits.py. --config.KEY=VALUE changes a key of it.",
    "recorded": "Experiment, such as configs/digits.py; default: that of the encoder. "
    "--config.KEY=VALUE changes a key of it.",
}
_COMMANDS = ("python -m ", "bash ", "moco-jax ")


def describe(work: Callable, config: str) -> None:
    """Makes --help list the flags of the command `work`, whatever script started it.

    `config` is whether it needs --config, see `command_line.run_main`.
    """
    own, main = flags.FLAGS.get_key_flags_for_module(work.__module__), sys.argv[0]
    flags.FLAGS["config"].help = _CONFIG.get(config, _CONFIG["required"])
    for flag in [*own, *([flags.FLAGS["config"]] if config != "none" else [])]:
        flags.FLAGS.register_key_flag_for_module(main, flag)
    if documented := getattr(work, "__globals__", {}).get("__doc__"):
        sys.modules["__main__"].__doc__ = documented


def command(main: str, documented: str) -> str:
    """Returns the help of a command: what it does, examples, flags, details.

    Args:
      main: `sys.argv[0]` of the command, after `describe`.
      documented: the docstring of its module. Paragraphs of indented commands are examples.
    """
    columns = min(style.width(), _WIDEST)
    first, *others = inspect.cleandoc(documented).split("\n\n")
    examples = [line for text in others if _is_example(text) for line in text.splitlines()]
    parts = [_paragraph(first, columns)]
    if examples:
        parts.append("\n".join(["Examples:", *(f"  {line.strip()}" for line in examples)]))
    found = flags.FLAGS.get_key_flags_for_module(main)
    found.sort(key=lambda flag: flag.name != "config")  # the others stay in order
    parts.append("\n".join(["Flags:", *(_flag(flag, found, columns) for flag in found)]))
    parts += [_paragraph(text, columns) for text in others if not _is_example(text)]
    more = "--helpfull also lists the flags of libraries."
    if any(flag.name == "config" for flag in found):
        more = f"`python -m moco_jax.keys` lists all keys of configs. {more}"
    return "\n\n".join([*parts, _paragraph(more, columns)])


def _is_example(text: str) -> bool:
    lines = text.splitlines()
    return all(line[:2].isspace() for line in lines) and lines[0].strip().startswith(_COMMANDS)


def _paragraph(text: str, columns: int) -> str:
    """Returns a paragraph wrapped to the terminal; each item of a list begins a line."""
    if text.startswith((" ", "```")):
        return text
    items = re.split(r"\n(?=- )", text)
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()),
            columns,
            subsequent_indent="  " if item.startswith("- ") else "",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for item in items
    )


def _flag(flag: flags.Flag, among: list[flags.Flag], columns: int) -> str:
    """Returns the lines of a flag: its name, meaning, allowed values and default."""
    width = min(max(len(other.name) for other in among), _NAMES) + 4
    text = re.sub(r"^<[^>]*>: |; ?repeat this option.*", "", " ".join((flag.help or "").split()))
    if names := getattr(flag.parser, "enum_values", None):
        text += f" Allowed: {', '.join(names)}."
    if flag.boolean and flag.default:
        text += f" On by default; --no{flag.name} turns it off."
    elif flag.default not in (None, "", [], False) and "default" not in text.lower():
        text += f" Default {str(flag.default_as_str).strip(chr(39))}."
    name = f"--{flag.name}".ljust(width)
    return textwrap.fill(
        text,
        columns,
        initial_indent=f"  {name}" + (" " if len(name) > width else ""),
        subsequent_indent=" " * (width + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )


def with_installed_config(argv: list[str]) -> list[str]:
    """Returns the arguments with the path of an installed experiment for its name in --config.

    `--config=digits.py` and `--config=configs/digits.py` are experiments of the package where
    there is no such file. The path is printed.
    """
    found = list(argv)
    for at, argument in enumerate(argv):
        named = re.fullmatch(r"(--?config=)(.+)", argument)
        if argument in ("--config", "-config") and at + 1 < len(argv):
            place, before, value = at + 1, "", argv[at + 1]
        elif named:
            place, before, value = at, *named.groups()
        else:
            continue
        name, colon, variant = value.partition(":")
        file = pathlib.Path(name)
        installed = configs.FOLDER / file.name
        named_so = str(file.parent) in (".", "configs")
        if named_so and not file.exists() and file.suffix == ".py" and installed.is_file():
            print(f"config {installed}", file=sys.stderr)
            found[place] = f"{before}{installed}{colon}{variant}"
    return found
