"""What a run recorded in its workdir."""

import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moco_jax.training.flat_config import flatten
from moco_jax.training.remote import copies

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
    shown = [pathlib.PurePosixPath(copies.named(folder)) for folder in folders]
    names = [path.name for path in shown]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in shown]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: pathlib.Path, name: str) -> Record:
    if not folder.is_dir():
        raise ValueError(f"the workdir {folder} is no folder")
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if not config.is_file():
        raise ValueError(f"{folder} is no workdir of a run: it has no config.json")
    lines = [{k: v for k, v in x.items() if _is_number(v)} for x in _lines(metrics)]
    if not lines:
        raise ValueError(f"the workdir {folder} has no metrics yet: metrics.jsonl has no lines")
    try:
        content = flatten(ConfigDict(json.loads(config.read_text())))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"the workdir {folder}: config.json can't be read: {error}") from None
    return Record(
        name=name,
        folder=folder,
        config=content,
        lines=sorted(lines, key=lambda line: line["step"]),
        histograms=[x for x in _lines(folder / "histograms.jsonl") if _are_histograms(x)],
        starts=[x for x in _lines(folder / "starts.jsonl") if _is_start(x)],
    )


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_histograms(line: Line) -> bool:
    """Returns whether all counts are numbers, and have the edges of their bins."""
    lists = {name: x for name, x in line.items() if name.endswith(("/counts", "/edges"))}
    if not all(isinstance(x, list) and x and all(map(_is_number, x)) for x in lists.values()):
        return False
    names = {name.rpartition("/")[0] for name in lists}
    sizes = [(len(lists.get(f"{n}/counts", ())), len(lists.get(f"{n}/edges", ()))) for n in names]
    return all(edges == counts + 1 for counts, edges in sizes)


def _is_start(line: Line) -> bool:
    kinds = {"devices": list, "command": list, "versions": dict}
    return all(isinstance(line.get(name, kind()), kind) for name, kind in kinds.items())
