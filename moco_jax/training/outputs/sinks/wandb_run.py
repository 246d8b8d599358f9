"""A run at Weights & Biases. Only `child.py` imports this."""

import os
import pathlib
import uuid
from collections.abc import Callable, Mapping

import numpy as np
import wandb  # pyright: ignore[reportMissingImports]

from moco_jax.training.outputs.sinks.settings import Settings, read_id, write_id


class WandbRun:
    """Logs to one W&B run; the metric `step` is the horizontal axis of its charts."""

    def __init__(self, settings: Settings, say: Callable[[str], None]):
        """Starts the run, or continues the one whose id the workdir has.

        Args:
          settings: `target` is PROJECT or ENTITY/PROJECT.
          say: prints a line.
        """
        entity, _, project = settings.target.rpartition("/")
        number = read_id(settings) or uuid.uuid4().hex[:12]
        write_id(settings, number)
        options: dict = {"console": "off", "silent": True}
        if "x_stats_pid" in wandb.Settings.model_fields:
            options["x_stats_pid"] = os.getppid()  # measure the training process
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            name=settings.name,
            id=number,
            resume="allow",
            dir=settings.folder,
            config=settings.config,
            allow_val_change=True,
            settings=wandb.Settings(**options),
        )
        # W&B's own steps never decrease; those of a resumed run do.
        self._run.define_metric("*", step_metric="step")
        where = self._run.url or f"offline in {pathlib.Path(self._run.dir).parent}"
        say(f"W&B: {where}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        self._log(step, {name: [wandb.Image(image) for image in images]})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        counts = np.histogram(np.asarray(values, np.float64), bins=64)
        self._log(step, {name: wandb.Histogram(np_histogram=counts)})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: dict) -> None:
        self._run.log({"step": step, **values})


open_sink = WandbRun
