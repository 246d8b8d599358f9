"""Runs the variants of a study in sequence, each in its own workdir; keeps finished runs."""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.ablate.studies import Variant
from moco_jax.data.sources.source import Sources
from moco_jax.pretraining import pretrain, validation
from moco_jax.terminal import progress
from moco_jax.training import loop
from moco_jax.training.checkpoints import differences
from moco_jax.training.flat_config import flatten

RESULT, _CONFIG = "result.json", "study.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers at the end of a run; None if not measured."""

    label: str  # of the variant
    seed: int
    knn_top1: float | None = None  # percent; None without held-out labels
    # Pretext accuracy of the last step, percent; None without keys.
    accuracy: float | None = None
    loss: float | None = None  # of the last step
    chance: float | None = None  # loss of a random guess
    # Mean cosine of the oldest keys to the current encoder's; None if no key is older than a step.
    key_cosine: float | None = None
    seconds: float | None = None  # of all steps, from the median step
    megabytes: float | None = None  # device memory of the step
    failure: str = ""  # why training failed


def workdir(folder: pathlib.Path, label: str, seed: int) -> pathlib.Path:
    return folder / label / f"seed_{seed}"


def run_all(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: pathlib.Path,
    devices: Sequence[Any],
    sources: Sources | None = None,
) -> list[Result]:
    """Returns the results of all runs, seed by seed; runs those that have no result yet.

    Args:
      variants: of the study; each runs with each seed.
      sources: images; default the configs' sources.

    Raises:
      ValueError: if a config is wrong (before any run), or the folder contains other runs.
      loop.Interrupted: after SIGINT or SIGTERM; the same call resumes.
    """
    planned = []
    for seed, variant in itertools.product(seeds, variants):
        config = variant.config.copy_and_resolve_references()
        config.seed = seed
        planned.append((variant.label, config))
    check(planned, len(devices))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out={folder} is not a folder; change --out")
    results, begun, trained = [], time.monotonic(), 0
    for number, (label, config) in enumerate(planned, start=1):
        path = workdir(folder, label, config.seed)
        left = ""
        if trained:  # finished runs are not repeated and take no time
            seconds = (time.monotonic() - begun) / trained * (len(planned) - number + 1)
            left = f"; about {progress.duration(seconds)} left"
        print(f"run {number} of {len(planned)}: {label}, seed {config.seed}{left}", flush=True)
        trained += not is_finished(path)
        results.append(run_one(label, config, path, devices, sources))
    return results


def check(planned: Sequence[tuple[str, ConfigDict]], devices: int) -> None:
    """Raises a ValueError with the label of the first invalid config."""
    for label, config in planned:
        try:
            validation.check(config, devices)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None


def run_one(
    label: str,
    config: ConfigDict,
    path: pathlib.Path,
    devices: Any,
    sources: Sources | None,
    moves: Sequence[str] = (),
) -> Result:
    """Returns the result of a run; reads it from the folder if the run is finished.

    `moves` are the keys of the config that name folders of the study, which may be moved.
    """
    check_same(config, path, config_lib.base(), moves)
    if is_finished(path):
        return Result(**read(path / RESULT))
    try:
        pretrain.pretrain(config, path, devices=devices, sources=sources, last=False)
        result = summary(label, config.seed, path / "metrics.jsonl")
    except loop.NotFinite as error:  # also a result: this value does not train
        result = Result(label, config.seed, failure=str(error).partition(".")[0])
    write(path / RESULT, dataclasses.asdict(result))
    return result


def is_finished(path: pathlib.Path) -> bool:
    return (path / RESULT).exists()


def write(file: pathlib.Path, content: Any) -> None:
    """Writes JSON atomically."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, file)


def read(file: pathlib.Path) -> Any:
    """Returns the JSON of a file; a ValueError says which file can't be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}; remove it to repeat the run") from error


def check_same(
    config: ConfigDict, path: pathlib.Path, base: ConfigDict, moves: Sequence[str] = ()
) -> None:
    """Records a new run's config; raises a ValueError if the run began with another config.

    `base` is the base config of its task. The keys `moves` may change.
    """
    file = path / _CONFIG
    now, defaults = (json.loads(json.dumps(flatten(c))) for c in (config, base))
    started = is_finished(path) or any((path / "checkpoints").glob("*"))
    # Runs older than a key of the config used that key's default.
    changed = differences(defaults | read(file), now) if started and file.exists() else {}
    changed = {key: values for key, values in changed.items() if key not in moves}
    if changed:
        listed = ", ".join(f"{key}: {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise ValueError(
            f"{path} contains a run with another config ({listed}); change --out or the config"
        )
    path.mkdir(parents=True, exist_ok=True)
    write(file, now)


def summary(label: str, seed: int, metrics: pathlib.Path) -> Result:
    """Returns the result of a finished run from its `metrics.jsonl`."""
    lines = read_lines(metrics)
    steps = [line for line in lines if "loss" in line]
    last = steps[-1]
    measured = [line["knn_top1"] for line in lines if "knn_top1" in line]
    cosines = [value for value in map(oldest_cosine, lines) if value is not None]
    return Result(
        label=label,
        seed=seed,
        knn_top1=measured[-1] if measured else None,
        accuracy=last.get("accuracy"),
        loss=last["loss"],
        chance=last.get("chance_loss"),
        key_cosine=cosines[-1] if cosines else None,
        seconds=statistics.median(line["seconds_per_step"] for line in steps) * last["step"],
        megabytes=last.get("step_megabytes"),
    )


def read_lines(metrics: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def oldest_cosine(line: dict[str, float]) -> float | None:
    """Returns the cosine of the oldest keys in a line of the metrics, or None."""
    ages = {int(key.rpartition("_")[2]): x for key, x in line.items() if key.startswith("key_")}
    return ages[max(ages)] if ages else None
