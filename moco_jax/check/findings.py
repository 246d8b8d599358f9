"""What a check found: a line for the user, and values for a report."""

import dataclasses
import enum
import textwrap
from collections.abc import Callable
from typing import Any

from moco_jax import text
from moco_jax.terminal import style

_NAME = 18  # columns
_REASON = 300  # characters of an error that are shown


class Verdict(enum.Enum):
    """Whether something is as it should be; the worst last."""

    OK = "ok"
    SKIPPED = "not run"
    SLOW = "slow"
    WRONG = "wrong"


_COLOURS = {Verdict.OK: "green", Verdict.SLOW: "yellow", Verdict.WRONG: "red"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
      name: what was checked.
      verdict: whether it is as it should be.
      text: what was measured.
      advice: what to do; '' for nothing.
      values: numbers by name, which JSON can encode.
      failed: whether the check itself failed.
    """

    name: str
    verdict: Verdict
    text: str
    advice: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    failed: bool = False


def attempt(name: str, work: Callable[[], Finding]) -> Finding:
    """Returns the finding of a check, or one that names its error: the other checks still count."""
    try:
        return work()
    except Exception as error:
        why = reason(error)
        advice = "report this line and the JSON file"
        if "RESOURCE_EXHAUSTED" in why:
            advice = "another program may use the memory of the devices: look at nvidia-smi"
        return Finding(name, Verdict.WRONG, f"the check failed: {why}", advice, failed=True)


def reason(error: Exception) -> str:
    """Returns the first line of an error, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_REASON]


def line(finding: Finding, columns: int) -> str:
    """Returns a finding as printable text: verdict, name, what was measured, then the advice."""
    label = style.coloured(finding.verdict.value.ljust(8), _COLOURS.get(finding.verdict, ""))
    indent = " " * (8 + _NAME)
    lines = []
    for part in (finding.text, f"-> {finding.advice}" if finding.advice else ""):
        lines += textwrap.wrap(text.message(part), max(columns - len(indent), 30))
    return f"{label}{finding.name.ljust(_NAME)}" + f"\n{indent}".join(lines)


def summary(findings: list[Finding]) -> str:
    """Returns the last line: how many checks have which verdict."""
    counts = {v: sum(f.verdict is v for f in findings) for v in Verdict}
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)


def worst(findings: list[Finding]) -> Verdict:
    """Returns the worst verdict."""
    return max((f.verdict for f in findings), key=list(Verdict).index)
