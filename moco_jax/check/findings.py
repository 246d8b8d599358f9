"""What a check found: a line for the user, and values for a report."""

import dataclasses
import enum
import textwrap
from typing import Any

from moco_jax.terminal import style

_NAME = 18  # columns


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
    """

    name: str
    verdict: Verdict
    text: str
    advice: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


def line(finding: Finding, columns: int) -> str:
    """Returns a finding as text: verdict, name, what was measured, and below it the advice."""
    label = style.coloured(finding.verdict.value.ljust(8), _COLOURS.get(finding.verdict, ""))
    indent = " " * (8 + _NAME)
    lines = textwrap.wrap(finding.text, max(columns - len(indent), 30))
    if finding.advice:
        lines += textwrap.wrap(f"-> {finding.advice}", max(columns - len(indent), 30))
    return f"{label}{finding.name.ljust(_NAME)}" + f"\n{indent}".join(lines)


def summary(findings: list[Finding]) -> str:
    """Returns the last line: how many checks have which verdict."""
    counts = {v: sum(f.verdict is v for f in findings) for v in Verdict}
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)


def worst(findings: list[Finding]) -> Verdict:
    """Returns the worst verdict."""
    return max((f.verdict for f in findings), key=list(Verdict).index)
