"""Runs that work and runs made to fail, and the verdict on each.

Command: python -m benchmarks.health [--cases=lr_too_high,no_negatives] [--out=runs/health] \\
  [--epochs=6]

Each case is the digits run with some changes, in a workdir below --out; finished ones are not
repeated. Prints for each evaluation the measures that the verdict is drawn from, and the verdict.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from absl import app, flags

from moco_jax.configs import digits
from moco_jax.contrastive.dictionaries import queue
from moco_jax.data.sources.opening import open_named
from moco_jax.health.verdict import verdict
from moco_jax.pretraining import pretrain
from moco_jax.training import loop

_CASES = flags.DEFINE_list("cases", None, "Names of cases; default all.")
_OUT = flags.DEFINE_string("out", "runs/health", "Folder of the workdirs.")
_EPOCHS = flags.DEFINE_float("epochs", 6, "Length of the short cases.")

_SECONDS = 0.02  # that a throttled source takes for an image
_COLUMNS = {
    "kNN": "knn_top1",
    "linear": "linear_top1",
    "rank": "health/rank",
    "spread": "health/spread",
    "keys": "health/key_spread",
    "dead": "health/dead_units",
    "align": "health/alignment",
    "uniform": "health/uniformity",
}


@contextlib.contextmanager
def as_it_is(config) -> Iterator[Any]:
    yield open_named(config)


@contextlib.contextmanager
def without_negatives(config) -> Iterator[Any]:
    """Makes the loss the distance of a query and its key, with nothing against it."""
    found = queue.info_nce

    def pulled(*arguments, **options):
        contrast = found(*arguments, **options)
        return contrast._replace(loss=10 * (1 - contrast.positive_similarity))

    with mock.patch.object(queue, "info_nce", pulled):
        yield open_named(config)


@contextlib.contextmanager
def throttled(config) -> Iterator[Any]:
    """Makes each image take some milliseconds to read."""
    sources = open_named(config)
    train = sources.train

    def read(index):
        time.sleep(_SECONDS)
        return train.read(index)

    yield dataclasses.replace(sources, train=dataclasses.replace(train, read=read))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
      changes: of the digits config, by key.
      images: opens the images, with what else is changed during the run.
      whole: whether it is as long as the config says.
    """

    changes: dict[str, Any]
    images: Callable[[Any], Any] = as_it_is
    whole: bool = False


CASES = {
    "healthy": Case({}, whole=True),
    "healthy_v3": Case({"variant": "v3"}, whole=True),
    "v3_vit": Case({"variant": "v3_vit"}),
    "mae": Case({"variant": "mae"}),
    "v3_mae": Case({"variant": "v3_mae"}),
    "lr_too_high": Case({"lr": 10.0}),
    "lr_high": Case({"lr": 1.0}),
    "lr_too_low": Case({"lr": 1e-5}),
    "hot": Case({"temperature": 10.0}),
    "no_negatives": Case({}, without_negatives),
    "pairs": Case({"bn_groups": 32, "shuffle_bn": False, "temperature": 0.05}, whole=True),
    "pairs_end_to_end": Case(
        {"variant": "v3", "bn_groups": 32, "shuffle_bn": False, "temperature": 0.05}, whole=True
    ),
    "one_group": Case({"bn_groups": 1, "shuffle_bn": False, "temperature": 0.05}, whole=True),
    "one_group_of_8": Case(
        {"batch_size": 8, "lr_batch": 16, "bn_groups": 1, "shuffle_bn": False, "epochs": 12}
        | {"temperature": 0.07, "log_every": 200},
    ),
    "throttled": Case(
        {"data.resident_megabytes": 0, "data.canvas": 32, "data.threads": 1}, throttled
    ),
    "short": Case({"epochs": 0.2, "warmup_epochs": 0.1, "log_every": 5}),
}


def run(name: str, case: Case, folder: pathlib.Path) -> None:
    """Pretrains a case in its workdir; says why it ends if it does not reach its last step."""
    changes = dict(case.changes)
    config = digits.get_config(changes.pop("variant", ""))
    config.log_views, config.drift = False, False
    if not case.whole:
        config.epochs, config.warmup_epochs = _EPOCHS.value, 0.5
    config.knn.every_epochs = 2
    config.update_from_flattened_dict(changes)
    try:
        with case.images(config) as sources:
            pretrain.pretrain(config, folder, sources=sources, last=False)
    except loop.NotFinite as error:
        print(f"{name}: {error}")


def show(name: str, folder: pathlib.Path) -> None:
    """Prints the evaluations of a finished case."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["step"])
    print(f"\n{name}\n{'step':>6}", *(f"{column:>8}" for column in _COLUMNS), "loss  pretext")
    for i, line in enumerate(lines):
        if "health/rank" not in line:
            continue
        training = [other for other in lines[: i + 1] if "loss" in other][-1:]
        latest = training[0] if training else {}
        numbers = [f"{line.get(key, float('nan')):8.3f}" for key in _COLUMNS.values()]
        print(
            f"{line['step']:6}",
            *numbers,
            f"{latest.get('loss', float('nan')):.3f}  {latest.get('accuracy', float('nan')):.1f}%",
            "; ".join(f"{v.name} ({v.reason})" for v in verdict(lines[: i + 1])),
        )


def main(_) -> None:
    for name in _CASES.value or CASES:
        folder = pathlib.Path(_OUT.value) / name
        run(name, CASES[name], folder)
        show(name, folder)


if __name__ == "__main__":
    app.run(main)
