"""Shows what a masked autoencoder sees and predicts: images, masked images and reconstructions."""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.contrastive.masks import make_draw_order, visible
from moco_jax.contrastive.state import TrainState
from moco_jax.data.augment.views import make_views, pixels
from moco_jax.data.loading.order import in_order
from moco_jax.models.decoder import denormalized
from moco_jax.models.patches import hide, join, split
from moco_jax.pretraining.grid import grid
from moco_jax.pretraining.run import PretrainRun
from moco_jax.terminal import logs
from moco_jax.training.outputs.metrics_log import MetricsLog

FILE = "reconstructions.png"  # in the workdir
_IMAGES = 8  # that are shown


def make_reconstruction_log(
    run: PretrainRun, log: MetricsLog, folder: pathlib.Path
) -> Callable[[TrainState, int], None]:
    """Returns a function (state, step) that shows the first images of the run, always the same.

    A row has an image's first view, its visible patches, and these beside the predictions. It goes
    to the loggers and to `FILE` in the workdir, which has the newest. A failure prints a warning.
    """
    draw_images, reconstruct, shown = _make_draw(run), _make_reconstruct(run), []

    def write(state: TrainState, step: int) -> None:
        try:
            if not shown:
                shown.append(draw_images())
            cells = reconstruct(state.params, *shown[0])
            if jax.process_index() == 0:
                image = grid(np.asarray(cells))
                log.images(step, "reconstructions", image[None])
                _save(image, folder / FILE)
        except Exception as error:  # nothing that is only shown stops a run
            logs.warning("no reconstructions: %s: %s", type(error).__name__, error)

    return write


def _make_draw(run: PretrainRun) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Returns a function that draws views [N, S, S, 3] and the orders of patches.

    Only a few images are decoded, so a row is another draw of a view than that of the first step.
    """
    config = run.config.copy_and_resolve_references()
    config.dtype = "float32"
    views, order, data = (
        make_views(config, run.layout),
        make_draw_order(config, run.layout),
        run.data,
    )

    @jax.jit
    def draw(arrays, batch):
        step = jnp.int32(0)
        first = views(step, *data.images(arrays, batch))[0]
        orders = order(StepIndices(step, data.indices(batch)), 0)
        return run.layout.replicate((first[:_IMAGES], orders[:_IMAGES]))

    def drawn():
        few = -(-_IMAGES // run.layout.devices) * run.layout.devices
        with contextlib.closing(data.batches(in_order(run.order[0][:few], few))) as batches:
            return jax.device_get(draw(run.arrays, next(batches)))

    return drawn


def _make_reconstruct(run: PretrainRun) -> Callable[..., jax.Array]:
    """Returns (params, views, orders) -> view, masked view, prediction: uint8[N, 3, S, S, 3]."""
    config, encoder = run.config, run.method.encoder
    patch, keep = config.model.patch, visible(config)

    @jax.jit
    def reconstruct(params, images, order):
        variables = {"params": run.layout.replicate(params)}
        found: Any = encoder.apply(variables, images, order, keep, train=False, method="predict")
        patches = split(images, patch)
        predicted = found[1].reshape(patches.shape)
        if config.mask.normalize_pixels:  # the mean and deviation of a patch are not predicted
            predicted = denormalized(predicted, patches)
        hidden = (jnp.argsort(order, axis=1) >= keep).reshape(patches.shape[:3])
        mixed = join(jnp.where(hidden[..., None], predicted, patches), patch)
        levels = pixels(jnp.stack([images, mixed], axis=1), config.data.mean, config.data.std)
        masked = hide(levels[:, 0], hidden, patch)
        cells = jnp.stack([levels[:, 0], masked, levels[:, 1]], axis=1)
        return run.layout.replicate(cells)

    return reconstruct


def _save(image: np.ndarray, file: pathlib.Path) -> None:
    unfinished = file.with_name(f".{file.name}")
    Image.fromarray(image).save(unfinished, "PNG")
    os.replace(unfinished, file)
