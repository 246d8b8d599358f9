"""What a logger in another process needs, and the id of its run in the workdir."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LONGEST = 10_000  # bytes of a file with an id


class Settings(NamedTuple):
    """Of one logger and one start of a run.

    Attributes:
      logger: its config key, such as "wandb".
      target: the value of this key: where the logger writes to.
      folder: the workdir.
      name: of the run, for the logger's pages.
      experiment: the config's name.
      start_step: the step at which the run starts or resumes.
      config: the flat config.
    """

    logger: str
    target: str
    folder: pathlib.Path
    name: str
    experiment: str
    start_step: int
    config: Mapping[str, Any]


def id_file(settings: Settings) -> pathlib.Path:
    """Returns the file of the workdir that has the id of the logger's run."""
    return settings.folder / f"{settings.logger}.json"


def read_id(settings: Settings) -> str | None:
    """Returns the id of the logger's run that a resumed run continues, or None.

    A run that starts at step 0 is a new one, and so is one with another target.
    """
    if not settings.start_step:
        return None
    try:
        with open(id_file(settings), "rb") as file:
            about = json.loads(file.read(_LONGEST))
        if about["target"] == settings.target and _ID.fullmatch(about["run"]):
            return about["run"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return None


def write_id(settings: Settings, number: str) -> None:
    """Stores the id of the logger's run.

    Raises:
      OSError: if it can't be written.
    """
    content = json.dumps({"target": settings.target, "run": number}) + "\n"
    temporary = settings.folder / f".{settings.logger}.json.tmp"
    temporary.write_text(content)
    temporary.replace(id_file(settings))
