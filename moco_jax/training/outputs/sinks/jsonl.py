"""metrics.jsonl: one JSON object a line. It holds scalars only."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from moco_jax.training.outputs.appending import Appended

FILE = "metrics.jsonl"


class Jsonl:
    """Appends to `metrics.jsonl` of a workdir."""

    def __init__(self, folder: pathlib.Path):
        self._lines = Appended(folder / FILE)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **values}).encode() + b"\n")

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        pass

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        pass

    def close(self) -> None:
        self._lines.close()
