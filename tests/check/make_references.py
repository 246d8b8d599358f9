"""Writes moco_jax/check/references.json: python -m tests.check.make_references

Run it only after a change of the mechanisms in moco_jax/check/mechanisms.py. The step that it runs
must agree with PyTorch: pytest tests/golden. It searches for batches until rounding errors hardly
move the results, which takes minutes.
"""

import functools
import itertools
import json

import jax

from moco_jax.check import arithmetic, mechanisms, rounding
from moco_jax.check.mechanisms import Deviation, Results, Steps
from moco_jax.parallel.mesh import make_layout

LIMIT = arithmetic.ARITHMETICS["exact float32"].limit
SMALL = 0.1  # fraction of the limit that rounding errors may use


@functools.cache
def prepared(name: str) -> Steps:
    """Returns the steps of a mechanism in float64 on one device; call and run them with x64."""
    config = mechanisms.MECHANISMS[name]()
    config.dtype = "float64"
    return mechanisms.prepare(config, make_layout(jax.devices()[:1]))


def computed(name: str, first: int) -> Results:
    """Returns the results of a mechanism in float64 on one device."""
    with jax.enable_x64(True):
        return mechanisms.run(prepared(name), first)


def sensitivity(name: str, first: int, trials: int) -> float:
    """Returns the largest deviation that rounding errors cause, as a fraction of the limit."""
    with jax.enable_x64(True):
        found: Deviation = rounding.sensitivity(prepared(name), first, trials=trials)
    return max(a / b for a, b in zip(found, LIMIT, strict=True))


def chosen(name: str) -> int:
    """Returns the number of the first batch of steps that rounding errors hardly move."""
    for first in itertools.count(0, mechanisms.STEPS):
        if all(sensitivity(name, first, trials) < SMALL for trials in (2, 32)):  # few first: faster
            print(f"{name}: batches from {first}")
            return first
    raise AssertionError


if __name__ == "__main__":
    results = {name: list(computed(name, chosen(name))) for name in mechanisms.MECHANISMS}
    mechanisms.REFERENCES.write_text(json.dumps(results, indent=1) + "\n")
