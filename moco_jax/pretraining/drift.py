"""How far a dictionary's keys have drifted: the argument for the momentum encoder, as a number.

A queue holds keys of encoders of the past (MoCo, sec. 3.2): they are of use as far as today's key
encoder would give the same. Here that is measured. Views follow from the seed and the step, so the
very images and views that a key was made of are encoded again, and the two are compared.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import Batch, Dictionary
from moco_jax.contrastive.train_step import TrainState
from moco_jax.data.augment.views import make_views
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.parallel.mesh import Layout

_AGES = 5  # that are measured, from the newest to the oldest

# (state, views) -> keys f32[N, D], in the order in which the dictionary takes them in
Recode = Callable[[TrainState, tuple[jax.Array, ...]], jax.Array]


class DriftMonitor:
    """Compares keys in the dictionary with today's keys of the same views."""

    def __init__(
        self,
        config: ConfigDict,
        data: DataSet,
        order: ShuffledOrder,
        dictionary: Dictionary,
        recode: Recode,
        layout: Layout,
    ):
        self._data, self._order, self._dictionary = data, order, dictionary
        self._first = 0
        draw = make_views(config, layout)

        @layout.jit
        def cosine(state, arrays, batch, step):
            views = draw(step, *data.images(arrays, batch))
            old = dictionary.recall(state.dictionary, Batch(step, data.indices(batch)))
            new = recode(state, views)
            return layout.replicate(jnp.sum(old.astype(new.dtype) * new, axis=-1).mean())

        self._cosine = cosine

    def begin(self, step: int) -> None:
        """Tells the step from which this run goes on.

        What was there before is not looked at: it may be another project's, converted, or of
        another config.
        """
        self._first = step

    def measure(self, state: TrainState) -> dict[int, float]:
        """Returns {age: mean cosine}; a key's age is the steps since the one that made it.

        A momentum encoder's newest keys, of age 0, are today's: their cosine is 1.
        """
        done = int(state.step)
        reach = max(0, min(self._dictionary.reach(done), done - self._first))
        if not reach:
            return {}
        ages = np.unique(np.linspace(0, reach - 1, _AGES).round().astype(int)).tolist()
        steps = [done - 1 - age for age in ages]
        plan = [self._order[step] for step in steps]
        with contextlib.closing(self._data.batches(plan)) as batches:
            found = [
                self._cosine(state, self._data.arrays, batch, np.int32(step))
                for batch, step in zip(batches, steps, strict=True)
            ]
        return dict(zip(ages, map(float, jax.device_get(found)), strict=True))
