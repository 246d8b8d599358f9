"""The loggers of a run: which there are, what their config keys may be, and how they fail."""

import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from moco_jax.terminal import logs
from moco_jax.training.flat_config import flatten
from moco_jax.training.outputs.sinks.remote import Remote
from moco_jax.training.outputs.sinks.settings import Settings
from moco_jax.training.outputs.sinks.sink import Sink

# Loggers that use a network, by their config key; the library has the same name.
TITLES = {"wandb": "W&B", "mlflow": "MLflow"}
# Where a library reads its user and password, or its token.
_SECRETS = {
    "wandb": "WANDB_API_KEY",
    "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
}
_USER = re.compile(r"://[^/].*@", re.DOTALL)  # a password may contain / and @


def rule(logger: str) -> Callable[[Any], str]:
    """Returns the rule of a logger's key: a string; unless it is empty, the library is needed."""

    def problem(value: Any) -> str:
        if not isinstance(value, str):
            return "must be a string; '' turns it off"
        if not value:
            return ""
        if _USER.search(value):
            return (
                "must have no user, password or token before an @, since the config is recorded; "
                f"set {_SECRETS[logger]}"
            )
        if importlib.util.find_spec(logger) is None:
            return f"needs the library {logger}: pip install 'moco-jax[{logger}]'"
        return ""

    return problem


RULES = {logger: rule(logger) for logger in TITLES}


def remotes(config: ConfigDict, folder: pathlib.Path, start_step: int) -> dict[str, Sink]:
    """Returns the loggers that the config asks for, by title. One that can't start is left out."""
    found: dict[str, Sink] = {}
    for logger, title in TITLES.items():
        if not config.get(logger):
            continue
        name = config.name if folder.name == config.name else f"{config.name} {folder.name}"
        settings = Settings(
            logger, config[logger], folder, name, config.name, start_step, flatten(config)
        )
        try:
            found[title] = Remote(settings, title)
        except Exception as error:
            logs.warning("%s: %s. The run goes on without it.", title, error)
    return found


class Guarded:
    """Several sinks as one. One that raises prints a warning, once, and the run goes on."""

    def __init__(self, sinks: dict[str, Sink]):
        """Takes the sinks by their titles, in the order in which they are called."""
        self._sinks = sinks
        self._warned: set[str] = set()

    def scalars(self, *arguments: Any) -> None:
        self._each("scalars", arguments)

    def images(self, *arguments: Any) -> None:
        self._each("images", arguments)

    def histogram(self, *arguments: Any) -> None:
        self._each("histogram", arguments)

    def close(self) -> None:
        for sink in self._sinks.values():
            if isinstance(sink, Remote):
                sink.end()  # so that all of them send at the same time
        self._each("close", ())

    def _each(self, method: str, arguments: Iterable[Any]) -> None:
        for title, sink in self._sinks.items():
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # libraries raise many types
                if title not in self._warned:
                    reason = f"{type(error).__name__}: {error}"
                    logs.warning("%s: %s. The run goes on.", title, reason)
                self._warned.add(title)
