"""Logs the views of a run's first images, so that its augmentation can be seen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.augment.views import make_views, pixels
from moco_jax.pretraining.grid import grid
from moco_jax.pretraining.run import PretrainRun
from moco_jax.terminal import logs, progress
from moco_jax.training.outputs.metrics_log import MetricsLog

_IMAGES = 8  # that are shown


def make_view_log(run: PretrainRun, log: MetricsLog) -> Callable[[Any], None]:
    """Returns a function: the batch of the first step -> logs its views as one image.

    The image has a row for each image of the batch and a column for each recipe of `config.views`.
    A failure prints a warning.
    """
    config = run.config.copy_and_resolve_references()
    config.dtype = "float32"
    draw, layout, data = make_views(config, run.layout), run.layout, run.data

    def first_views(arrays, batch):
        views = draw(jnp.int32(0), *data.images(arrays, batch))
        shown = jnp.stack([view[:_IMAGES] for view in views], axis=1)
        return layout.replicate(pixels(shown, config.data.mean, config.data.std))

    def write(batch: Any) -> None:
        # It runs once: on CPUs half the time goes into optimizing it.
        on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
        options = {"xla_backend_optimization_level": "0"} if on_cpu else None
        try:
            with progress.phase("drawing views for the log"):
                drawn = jax.jit(first_views, compiler_options=options)(run.arrays, batch)
                found = jax.device_get(drawn)
            log.images(0, "views", grid(np.asarray(found))[None])
        except Exception as error:  # nothing that is only shown stops a run
            logs.warning("the views are not logged: %s: %s", type(error).__name__, error)

    return write
