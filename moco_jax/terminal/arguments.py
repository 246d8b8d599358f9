"""The command line: the flag --config, and an error for each argument that can't be used."""

import ast
import copy
import difflib
import functools
import operator
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from moco_jax.terminal import help, keys, renamed

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")

_LONGEST = 100  # characters of an argument in a message
_LONGEST_ERROR = 300  # characters of the message of a library
_HELP = ("-h", "-help", "-?", "--help", "--helpshort", "--helpfull", "--helpxml")
_OVERRIDE = re.compile(r"(?s)--?(no)?config\.([^=]*)(?:=(.*))?")
_PARSERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (flags.BooleanParser().parse, "True or False"),
    int: (flags.IntegerParser().parse, "a whole number"),
    float: (flags.FloatParser().parse, "a number"),
    tuple: (ast.literal_eval, "values with commas between them"),
}


# --config.KEY=VALUE without --config: (argument, key, value), changes of a recorded config.
_changes: list[tuple[str, str, str]] = []


class BadArguments(Exception):
    """The command line can't be used; the message says why."""


def parse(argv: list[str], config: str) -> list[str]:
    """Parses all flags; returns the arguments that are not flags.

    Args:
      argv: the command and its arguments.
      config: whether the command needs --config: 'required', 'optional', 'recorded' or 'none'. With
        'recorded' keys without --config are for `changed`.

    Raises:
      BadArguments: if an argument is unknown or wrong, or the config file can't be used.
      SystemExit: with code 0, after --help is printed.
    """
    if asked := set(_HELP) & set(argv):
        _help(argv, asked.pop())
    argv = help.with_installed_config(argv)
    if config == "none" and any(re.match("--?config(=|$)", argument) for argument in argv):
        given = next(argument for argument in argv if re.match("--?config(=|$)", argument))
        raise BadArguments(f"{given}: this command takes no config")
    _changes.clear()
    if config == "recorded" and _value("config", argv) is None:
        _changes.extend(_overrides(argv))
        argv = [argument for argument in argv if not _OVERRIDE.fullmatch(argument)]
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file may raise anything
        raise BadArguments(_explained(error, argv)) from error
    if len(rest) > 1:
        raise BadArguments(f"unexpected arguments: {' '.join(rest[1:])}")
    if config == "required" and not flags.FLAGS["config"].present:
        raise BadArguments("--config must be given, such as --config=configs/digits.py")
    if flags.FLAGS["config"].present:
        file = pathlib.Path(filename().partition(":")[0])
        if not file.is_file():
            raise BadArguments(f"--config={filename()}: {_absent(file)}")
    return rest


def filename() -> str:
    """Returns the value of --config."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def names_config() -> bool:
    """Returns whether --config or a key of it was given."""
    return bool(flags.FLAGS["config"].present or _changes)


def changed(recorded: ConfigDict, allowed: Sequence[str]) -> ConfigDict:
    """Returns a copy of a recorded config with the changes of the command line.

    Raises:
      BadArguments: for a key that is not allowed, and a value that it can't have.
    """
    config = copy.deepcopy(recorded)
    for argument, key, value in _changes:
        if problem := _override_problem(config, argument, key, value):
            raise BadArguments(problem)
        if key not in allowed:
            keys = ", ".join(allowed)
            raise BadArguments(f"{argument}: {key} has no effect here; allowed: {keys}")
        *groups, name = key.split(".")
        holder = functools.reduce(operator.getitem, groups, config)
        kind = holder.get_type(name)
        setattr(holder, name, _PARSERS.get(kind, (str, ""))[0](value))
    return config


def of_config(argv: list[str]) -> list[str]:
    """Returns --config and the changes of its keys, as arguments of another command."""
    return [f"--config={filename()}", *(f"--config.{key}={x}" for _, key, x in _overrides(argv))]


def _help(argv: list[str], asked: str) -> None:
    """Prints the help of the command, or the flags of all modules; ends the process."""
    if asked in _HELP[:5]:
        print(help.command(argv[0], sys.modules["__main__"].__doc__ or ""), flush=True)
        sys.exit(0)
    try:
        flags.FLAGS([argv[0], asked])
    except SystemExit:  # absl's code is 1
        sys.stdout.flush()
        sys.exit(0)


def _explained(error: Exception, argv: list[str]) -> str:
    """Returns what is wrong with the arguments that raised an error."""
    if isinstance(error, flags.UnrecognizedFlagError) and "." not in error.flagname:
        if error.flagname in renamed.FLAGS:
            return f"--{error.flagname} is now --{renamed.FLAGS[error.flagname]}"
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"; did you mean --{near[0]}?" if near else "; --help lists the flags"
        return f"--{error.flagname}: there is no such flag{hint}"
    path = _value("config", argv)
    if path is None and any(re.match(r"--?(no)?config\.", argument) for argument in argv):
        return "--config must be given before its keys, such as --config=configs/digits.py"
    if path is not None:
        loaded = loaded_config(path)
        if isinstance(loaded, str):
            return f"--config={path.rstrip(':')}: {loaded}"
        problems = [_override_problem(loaded, *override) for override in _overrides(argv)]
        if any(problems):
            return "\n".join(filter(None, problems))
    if "in argv before a value for --config" in str(error):
        return "--config must be given before its keys, such as --config=configs/digits.py"
    if isinstance(error, flags.Error):
        return re.sub(r"^flag --([^=]+)=", r"--\1=", str(error))
    return f"the arguments can't be used: {_one_line(error)}"


def _value(flag: str, argv: list[str]) -> str | None:
    """Returns the value of a flag on the command line, None if it is not there."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag:
            return value if equals else following
    return None


def loaded_config(path: str) -> ConfigDict | str:
    """Returns the config of a file, or why there is none."""
    name, colon, argument = path.partition(":")
    file = pathlib.Path(name)
    if not name:
        return "a config file must be named, such as configs/digits.py"
    if not file.is_file():
        return _absent(file)
    if file.suffix != ".py":
        return f"{name} is not a config file; allowed: a Python file, such as configs/digits.py"
    try:
        config = flags.FLAGS["config"].parser.parse(path)
    except SyntaxError as error:
        return f"SyntaxError in {name}, line {error.lineno}: {error.msg}"
    except Exception as error:
        # ml_collections puts the traceback into the message of a new error.
        cause = error.__context__ if "Error whilst parsing" in str(error) else error
        return _config_problem(cause or error, name, argument if colon else None)
    if not isinstance(config, ConfigDict):
        return f"get_config() must return a ConfigDict, got {type(config).__name__}"
    return config


def _absent(file: pathlib.Path) -> str:
    """Returns that there is no such config file, with the name of one that is there."""
    if file.is_dir():
        return f"{file} is a folder; allowed: a Python file, such as configs/digits.py"
    if file.stem == "help":
        return f"there is no config file {file}; `python -m moco_jax.keys` lists all keys"
    folders = [folder for folder in (file.parent, pathlib.Path("configs")) if folder.is_dir()]
    known = {str(path): path.stem for folder in folders for path in sorted(folder.glob("*.py"))}
    near = difflib.get_close_matches(file.stem, known.values(), n=1)
    hint = next((f"; did you mean {path}?" for path, stem in known.items() if [stem] == near), "")
    return f"there is no config file {file}{hint}"


def _config_problem(error: BaseException, file: str, argument: str | None) -> str:
    """Returns why `get_config` of a file failed."""
    text = str(error.args[0] if error.args else error)
    if isinstance(error, TypeError) and "get_config() takes 0 positional" in text:
        return f"{file} has no variants, got {argument!r}; allowed: --config={file}"
    if isinstance(error, TypeError) and "get_config() missing" in text:
        return f"{file} needs a variant: --config={file}:VARIANT"
    if isinstance(error, ValueError):
        return text
    if isinstance(error, AttributeError | KeyError) and (wrong := _wrong_key(error, text)):
        return wrong
    return f"{type(error).__name__}: {_one_line(error)}"


def _wrong_key(error: BaseException, text: str) -> str:
    """Returns that a config file uses a key that its config does not have, "" for other errors."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    named = re.search(r"""["'](\w+)\\?["']""", text) or re.fullmatch(r"(\w+)", text)
    group = frames[-1].get("self") if frames else None
    if not named or not isinstance(group, ConfigDict):
        return ""
    # The first is the whole config; the error comes from it or one of its groups.
    whole = next(x for frame in frames for x in frame.values() if isinstance(x, ConfigDict))
    values = ((name, functools.reduce(getattr, name.split("."), whole)) for name in keys.of(whole))
    key = next((f"{name}.{named[1]}" for name, value in values if value is group), named[1])
    return f"there is no config key {key!r}{_hint(whole, key)}"


def _one_line(error: BaseException) -> str:
    """Returns the message of an error on one line, cut to a length that a terminal shows."""
    lines = " ".join(str(error.args[0] if error.args else error).replace("\\n", " ").split())
    return lines if len(lines) <= _LONGEST_ERROR else f"{lines[:_LONGEST_ERROR]}..."


def _overrides(argv: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields (argument, key, value) of each --config.KEY=VALUE."""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        shown = argument if len(argument) <= _LONGEST else f"{argument[:_LONGEST]}..."
        found = _OVERRIDE.fullmatch(argument)
        if found:
            off, key, value = found.groups()
            if value is None:  # --config.drift, --noconfig.drift or --config.lr 0.1
                value = "False" if off else "True" if following[:1] in ("", "-") else following
            yield shown, key, value


def _override_problem(config: ConfigDict, argument: str, key: str, value: str) -> str:
    """Returns what is wrong with a --config.KEY=VALUE, '' if nothing."""
    holder, kind = config, ConfigDict
    if not all(key.split(".")):
        return f"{argument}: a key must have a name; `python -m moco_jax.keys` lists all keys"
    for depth, part in enumerate(key.split(".")):
        if not isinstance(holder, ConfigDict):
            above = ".".join(key.split(".")[:depth])
            return f"{argument}: {above} has no keys; it is set in the config file"
        if part not in holder.keys():
            return f"{argument}: there is no config key {key!r:.{_LONGEST}}{_hint(config, key)}"
        holder, kind = holder[part], holder.get_type(part)
    if isinstance(holder, ConfigDict):
        return f"{argument}: {key} is a group of keys; allowed: {', '.join(holder.keys())}"
    parse, allowed = _PARSERS.get(kind, (str, ""))
    try:
        parse(value)
    except (ValueError, TypeError, SyntaxError):
        if kind is tuple and not re.search("[, ]", value):
            return ""  # one text
        now = "" if holder is None or kind is bool else f", such as {_shown(holder)}"
        return f"{argument}: {key} must be {allowed}{now}"
    return ""


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _hint(config: ConfigDict, key: str) -> str:
    """Returns which key may be meant, or where the keys are listed."""
    if key in renamed.KEYS:
        return f"; it is now {renamed.KEYS[key]!r}"
    if near := keys.nearest(key, keys.of(config)):
        return f"; did you mean {near}?"
    task = "" if config.get("task") == "pretrain" else f" --task={config.get('task')}"
    return f"; `python -m moco_jax.keys{task}` lists all keys"
