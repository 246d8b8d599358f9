"""Lists the keys of a config: meaning, unit, value and what is allowed.

    python -m moco_jax.keys --match=knn
    python -m moco_jax.keys --task=linear
    python -m moco_jax.keys --config=configs/cifar10.py:simclr

Without --config the values are the defaults of a task. With it they are those of an experiment, and
the default follows where it differs. To change a key, write `--config.KEY=VALUE` after `--config`.
"""

import ast
import inspect
import io
import itertools
import re
import textwrap
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from moco_jax import config as pretraining
from moco_jax.segmentation import config as segmentation
from moco_jax.supervised import config as supervised
from moco_jax.terminal import command_line, style
from moco_jax.training.checks import Rule

BASES = {"pretrain": pretraining.base, **supervised.BASES, "segment": segmentation.base}
_RULES: dict[str, dict[str, Rule]] = {
    "pretrain": pretraining.RULES,
    **supervised.RULES,
    "segment": segmentation.RULES,
}
# The functions whose comments explain the keys of a task. A key that one leaves unexplained has the
# meaning that it has in the next.
_EXPLAINED = {
    "pretrain": ((pretraining, "base"),),
    **{
        task: (
            *((supervised, name) for name in (task, "_classification", "downstream")),
            (pretraining, "base"),
        )
        for task in supervised.BASES
    },
    "segment": ((segmentation, "base"), (supervised, "downstream"), (pretraining, "base")),
}
_LONGEST = 40  # characters of a value
_NO_VALUE = "\0"  # which every rule refuses

_TASK = flags.DEFINE_enum("task", "pretrain", list(BASES), "Task whose keys are listed.")
_MATCH = flags.DEFINE_string("match", "", "Lists only keys and meanings with this text.")


class Key(NamedTuple):
    """A key of a config.

    Attributes:
      name: with dots, such as 'data.image_size'.
      value: of the listed config.
      default: of the task's base config.
      meaning: the comment at the key in the source of the base config, with its unit.
      allowed: such as 'linear, mlp' or 'above 0', '' for any value of its type.
    """

    name: str
    value: Any
    default: Any
    meaning: str
    allowed: str


def keys(config: ConfigDict) -> list[Key]:
    """Returns all keys of a config of any task."""
    meanings, rules = _meanings(config.task), _RULES[config.task]
    defaults = _values(BASES[config.task]())
    return [
        Key(name, value, defaults.get(name), meanings.get(name, ""), _allowed(rules.get(name)))
        for name, value in _values(config).items()
    ]


def _values(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    values = {}
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        values |= _values(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return values


def _allowed(rule: Rule | None) -> str:
    """Returns what a rule allows, in its own words; "" for a rule that says nothing of values."""
    refused = rule(_NO_VALUE) if rule else ""
    _, listed, names = refused.partition("allowed: ")
    if listed:
        return names
    found = re.match(r"must (?:be|lie) (.*)", refused)
    return found[1].replace(f"a whole number from 1 to {2**31 - 1}", "1 or more") if found else ""


def _meanings(task: str) -> dict[str, str]:
    """Returns the meaning of each key of a task that has one."""
    found: dict[str, str] = {}
    for module, function in reversed(_EXPLAINED[task]):
        found |= _explained(module, function)
    return found


def _explained(module: ModuleType, function: str) -> dict[str, str]:
    """Returns the comments at the keys that a function sets; groups may be made by others.

    A comment stands on the lines above `c.key = value`, behind it, or both.
    """
    source = inspect.getsource(module)
    comments, alone = {}, set()  # by line; lines without code
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    functions = {x.name: x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)}

    def found(name: str, prefix: str) -> Iterator[tuple[str, str]]:
        for node in functions[name].body:
            key = _key(node)
            if not key or not isinstance(node, ast.Assign):
                continue
            made_by = getattr(getattr(node.value, "func", None), "id", "")
            if made_by in functions:
                yield from found(made_by, f"{prefix}{key}.")
            above = itertools.takewhile(alone.__contains__, range(node.lineno - 1, 0, -1))
            lines = [*reversed(list(above)), node.end_lineno]
            if text := " ".join(comments[line] for line in lines if line in comments):
                yield prefix + key, text

    return dict(found(function, ""))


def _key(node: ast.stmt) -> str:
    """Returns 'a.b' of the statement `c.a.b = ...`, '' of others."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
        return ""
    root, _, key = ast.unparse(node.targets[0]).partition(".")
    return key if root == "c" else ""


def main() -> None:
    config = command_line.config() if command_line.has_config() else BASES[_TASK.value]()
    if command_line.has_config() and flags.FLAGS["task"].present:
        raise ValueError("--task and --config can't be combined: the config has its task")
    if config.get("task") not in BASES:
        raise ValueError(f"task={config.get('task')!r} is unknown; allowed: {', '.join(BASES)}")
    wanted = _MATCH.value.lower()
    found = [key for key in keys(config) if wanted in f"{key.name} {key.meaning}".lower()]
    if not found:
        raise ValueError(f"--match={_MATCH.value}: no key of task={config.task} has this text")
    for key in found:
        print("\n".join(_lines(key)))


def _lines(key: Key) -> Iterator[str]:
    """Yields the lines of a key: its value, then its meaning."""
    default = "" if key.value == key.default else f"  (default {_shown(key.default)})"
    yield style.bold(f"{key.name}={_shown(key.value)}") + default
    named = all(name in key.meaning for name in key.allowed.split(", "))
    allowed = f"; allowed: {key.allowed}" if key.allowed and not named else ""
    columns = min(style.width(), 100)
    yield textwrap.fill(
        key.meaning.rstrip(".") + allowed, columns, initial_indent="    ", subsequent_indent="    "
    )


def _shown(value: Any) -> str:
    """Returns a value as the command line takes it, cut to a length."""
    short = isinstance(value, tuple) and not any(isinstance(x, (dict, tuple)) for x in value)
    shown = ",".join(map(str, value)) if short and value else repr(value)
    if isinstance(value, str):
        shown = value or "''"
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


if __name__ == "__main__":
    command_line.run_main(main, config="optional")
