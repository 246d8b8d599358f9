"""metrics.jsonl and histograms.jsonl: one JSON object a line."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from moco_jax.training.outputs.appending import Appended

FILE = "metrics.jsonl"  # scalars only
HISTOGRAMS = "histograms.jsonl"
_BINS = 50


class Jsonl:
    """Appends to `metrics.jsonl` and `histograms.jsonl` of a workdir."""

    def __init__(self, folder: pathlib.Path):
        self._lines, self._histograms = Appended(folder / FILE), Appended(folder / HISTOGRAMS)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **values}).encode() + b"\n")

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        pass

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        counts, edges = np.histogram(values, bins=_BINS)
        content = {"counts": counts.tolist(), "edges": edges.round(6).tolist()}
        line = {"step": step, **{f"{name}/{key}": numbers for key, numbers in content.items()}}
        self._histograms.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        self._lines.close()
        self._histograms.close()
