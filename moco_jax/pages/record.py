"""What a run recorded in its workdir."""

import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moco_jax.training.flat_config import flatten

Line = dict[str, Any]


class Record(NamedTuple):
    """The files of a workdir.

    Attributes:
      name: of the run on the page.
      folder: the workdir.
      config: by key, such as 'model.name'.
      lines: of metrics.jsonl, in order of their steps.
      histograms: of histograms.jsonl.
      starts: of starts.jsonl.
    """

    name: str
    folder: pathlib.Path
    config: dict[str, Any]
    lines: list[Line]
    histograms: list[Line]
    starts: list[Line]

    @property
    def task(self) -> str:
        return str(self.config.get("task", "pretrain"))

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of a metric."""
        found = [(line["step"], line[key]) for line in self.lines if key in line]
        return [step for step, _ in found], [value for _, value in found]


def read(folders: Sequence[pathlib.Path]) -> list[Record]:
    """Returns the records of workdirs, with different names.

    Raises:
      ValueError: for a folder that is no workdir or has no metrics yet.
    """
    folders = [folder.expanduser().absolute() for folder in folders]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: pathlib.Path, name: str) -> Record:
    if not folder.is_dir():
        raise ValueError(f"--workdir={folder} is no folder")
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if not config.is_file():
        raise ValueError(f"--workdir={folder} is no workdir of a run: it has no config.json")
    lines = sorted(_lines(metrics), key=lambda line: line["step"])
    if not lines:
        raise ValueError(f"--workdir={folder} has no metrics yet: metrics.jsonl has no lines")
    try:
        content = flatten(ConfigDict(json.loads(config.read_text())))
    except ValueError as error:
        raise ValueError(f"{config} can't be read: {error}") from None
    histograms, starts = folder / "histograms.jsonl", folder / "starts.jsonl"
    return Record(name, folder, content, lines, list(_lines(histograms)), list(_lines(starts)))


def _lines(path: pathlib.Path) -> Iterator[Line]:
    """Yields the whole lines of a log; a run may be writing it."""
    if not path.is_file():
        return
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and _is_finite(line):
            yield line


def _is_finite(line: Line) -> bool:
    return all(math.isfinite(value) for value in line.values() if isinstance(value, float))
