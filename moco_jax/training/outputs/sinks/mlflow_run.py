"""A run of MLflow. Only `child.py` imports this."""

import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping

import numpy as np

from moco_jax.training.outputs.sinks.settings import Settings, read_id, write_id

# MLflow sends data about its use to its makers, unless the user has set this variable.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow 3 refuses folders without this variable; the user asked for one by giving it.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

from mlflow.entities import Metric, Param  # noqa: E402  # pyright: ignore[reportMissingImports]
from mlflow.tracking import MlflowClient  # noqa: E402  # pyright: ignore[reportMissingImports]

_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in names of metrics
_LONGEST_PARAM = 6000  # characters
_PARAMS = 100  # in one request


class MlflowRun:
    """Logs to one MLflow run, through a client: nothing of MLflow's global state is used."""

    def __init__(self, settings: Settings, say: Callable[[str], None]):
        """Starts the run, or continues the one whose id the workdir has.

        Args:
          settings: `target` is a URI or a folder.
          say: prints a line.
        """
        target = settings.target
        if "://" not in target:
            target = pathlib.Path(target).expanduser().absolute().as_uri()
        self._client = MlflowClient(tracking_uri=target)
        known = read_id(settings)
        if known is None:
            self._id = self._create(settings)
            write_id(settings, self._id)
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")
        self._client.log_dict(self._id, dict(settings.config), "config.json")
        say(f"MLflow: run {self._id} of experiment {settings.experiment} in {settings.target}")

    def _create(self, settings: Settings) -> str:
        """Makes the run; returns its id."""
        client, name = self._client, settings.experiment
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = client.create_run(number, run_name=settings.name).info.run_id
        # A value can't change: a resume with another config changes config.json only.
        params = [Param(k, str(v)[:_LONGEST_PARAM]) for k, v in settings.config.items()]
        for i in range(0, len(params), _PARAMS):
            client.log_batch(run, params=params[i : i + _PARAMS])
        return run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [Metric(_FORBIDDEN.sub("_", k), x, now, step) for k, x in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        for i, image in enumerate(images):
            key = name if len(images) == 1 else f"{name}/{i}"
            self._client.log_image(self._id, image, key=_FORBIDDEN.sub("_", key), step=step)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """MLflow has no histograms: the counts and edges are a JSON file of the run."""
        counts, edges = np.histogram(np.asarray(values, np.float64), bins=64)
        content = {"counts": counts.tolist(), "edges": edges.tolist()}
        file = f"histograms/{_FORBIDDEN.sub('_', name)}/{step}.json"
        self._client.log_dict(self._id, content, file)

    def close(self) -> None:
        self._client.set_terminated(self._id)


open_sink = MlflowRun
