"""What both sides of the step's benchmark share: its problem, and how a process is led.

A side is a process of its own: two frameworks in one would share thread pools and device memory.
It is idle while the other's turn lasts.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Problem:
    """A pretraining step: of which network, at which sizes.

    Attributes:
      name: 'small' or 'imagenet'.
      batch: B, images.
      bn_groups: parts of the batch that batch norm sees apart.
      dtype: of activations, 'float32' or 'bfloat16'.
    """

    name: str
    batch: int
    bn_groups: int
    dtype: str


def problem_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the flags that name a problem."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=("small", "imagenet"), default="small")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--bn_groups", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def problem_of(options: argparse.Namespace) -> Problem:
    """Returns the problem that the flags of `problem_parser` name."""
    return Problem(options.size, options.batch, options.bn_groups, options.dtype)


def serve(facts: dict, steps: Callable[[int], float], closing: Callable[[], dict]) -> None:
    """Tells facts, then runs as many steps as each line of standard input asks for.

    Args:
      facts: about this side, told first as one line of JSON.
      steps: runs so many steps, waits for them, and returns the last one's loss.
      closing: facts that are known at the end only, such as peak memory.
    """
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        loss = steps(int(line))
        print(json.dumps({"seconds": time.perf_counter() - begun, "loss": loss}), flush=True)
    print(json.dumps(closing()), flush=True)


def process_megabytes() -> float:
    """Returns the most memory that this process ever had in RAM (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
