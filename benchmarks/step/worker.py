"""The problem and the protocol that both sides of `benchmarks.step` share.

Each side is its own process: two frameworks in one process would share thread pools and device
memory. A side is idle during the turns of the others.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable

SIZES = ("small", "imagenet", "vit", "cifar_vit")


@dataclasses.dataclass(frozen=True)
class Problem:
    """The network and the sizes of a pretraining step.

    Attributes:
      name: one of SIZES.
      batch: B, images.
      bn_groups: parts of the batch with separate batch-norm statistics.
      dtype: of activations, 'float32' or 'bfloat16'.
    """

    name: str
    batch: int
    bn_groups: int
    dtype: str


def problem_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags of a problem."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--bn_groups", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def problem_of(options: argparse.Namespace) -> Problem:
    """Returns the problem given by the flags of `problem_parser`."""
    return Problem(options.size, options.batch, options.bn_groups, options.dtype)


def serve(facts: dict, steps: Callable[[int], float], closing: Callable[[], dict]) -> None:
    """Prints JSON lines: facts, then time and loss for each line of input, then the closing facts.

    Args:
      facts: library, device and compile time of this side.
      steps: runs a number of steps, waits for them and returns the loss of the last one. Each line
        of standard input is one such number.
      closing: returns facts that are known only at the end, such as peak memory.
    """
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        loss = steps(int(line))
        print(json.dumps({"seconds": time.perf_counter() - begun, "loss": loss}), flush=True)
    print(json.dumps(closing()), flush=True)


def process_megabytes() -> float:
    """Returns the peak resident memory of this process (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
