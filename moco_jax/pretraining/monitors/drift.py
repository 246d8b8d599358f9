"""The drift of a dictionary's keys: how much the momentum encoder keeps old keys consistent.

A queue holds keys of past encoders (MoCo, sec. 3.2). They are useful if today's key encoder would
return the same keys. This monitor measures it: views follow from the seed and the step, so it
encodes the same views of the same images again and compares the keys.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.contrastive.state import TrainState
from moco_jax.data.augment.views import make_views
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.pretraining.method import Method
from moco_jax.terminal import progress

_AGES = 5  # that are measured, from the newest to the oldest


class DriftMonitor:
    """Compares keys in the dictionary with today's keys of the same views."""

    def __init__(self, method: Method, data: DataSet, order: ShuffledOrder):
        self._data, self._order, self._dictionary = data, order, method.dictionary
        self._first = 0
        draw, recode, layout = (
            make_views(method.config, method.layout),
            method.recode(),
            method.layout,
        )

        @layout.jit
        def cosine(state, arrays, batch, step):
            views = draw(step, *data.images(arrays, batch))
            at = StepIndices(step, data.indices(batch))
            old = self._dictionary.recall(state.dictionary, at)
            new = recode(state, views)
            return layout.replicate(jnp.sum(old.astype(new.dtype) * new, axis=-1).mean())

        self._cosine = cosine

    def begin(self, step: int) -> None:
        """Sets the first step whose images and views are those of this run.

        Older keys are not compared: they come from a converted checkpoint or another config.
        """
        self._first = step

    def measure(self, state: TrainState) -> dict[int, float]:
        """Returns {age: mean cosine}; the age of a key is the number of steps since it was made.

        The newest keys of a momentum encoder, of age 0, are today's: their cosine is 1.
        """
        done = int(state.step)
        reach = max(0, min(self._dictionary.reach(done), done - self._first))
        if not reach:
            return {}
        ages = np.unique(np.linspace(0, reach - 1, _AGES).round().astype(int)).tolist()
        steps = [done - 1 - age for age in ages]
        plan = [self._order[step] for step in steps]
        with (
            progress.phase("comparing stored keys with current ones"),
            contextlib.closing(self._data.batches(plan)) as batches,
        ):
            found = [
                self._cosine(state, self._data.arrays, batch, np.int32(step))
                for batch, step in zip(batches, steps, strict=True)
            ]
            return dict(zip(ages, map(float, jax.device_get(found)), strict=True))
