"""How far rounding errors move the results of five steps.

If the input of a ReLU is almost 0, a rounding error may turn the ReLU on or off. Its gradient then
jumps, and later steps amplify the jump. So the results of a correct device may differ by some
percent.
"""

import functools

import jax
import numpy as np

from moco_jax.check import mechanisms
from moco_jax.check.mechanisms import Deviation, Steps
from moco_jax.contrastive.state import TrainState

_ERROR = 1e-6  # of a weight, relative; several times the rounding error of float32


def sensitivity(steps: Steps, first: int = 0, *, trials: int) -> Deviation:
    """Returns the largest deviation of the results when each weight changes by 1e-6 of itself.

    Args:
      steps: of one device.
      first: number of the first step's batch.
      trials: number of changes. A single one shows the effect of a ReLU at 0 half of the time.
    """
    steps = steps._replace(inputs=functools.cache(steps.inputs))
    result = mechanisms.run(steps, first)
    found = [
        mechanisms.deviation(mechanisms.run(_changed(steps, seed), first), result)
        for seed in range(trials)
    ]
    return Deviation(*(float(np.max(x)) for x in zip(*found, strict=True)))  # NaN if one is NaN


def _changed(steps: Steps, seed: int) -> Steps:
    def start() -> TrainState:
        state, random = steps.start(), np.random.RandomState(seed)
        change = lambda x: x * (1 + _ERROR * random.standard_normal(x.shape)).astype(x.dtype)  # noqa: E731
        return state.replace(params=jax.tree.map(change, state.params))

    return steps._replace(start=start)
