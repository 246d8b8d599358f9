"""Runs the study of pretexts: each arm is pretrained, then evaluated; finished parts are kept."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.ablate import grid
from moco_jax.ablate.pretext import Job
from moco_jax.data.sources.source import Sources
from moco_jax.supervised import evaluate, results, run
from moco_jax.supervised import validation as supervised
from moco_jax.supervised.config import BASES
from moco_jax.terminal import progress
from moco_jax.training import loop

_READY = 10_000  # images; what is wrong with a batch for so many is wrong with any number


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of an arm with one seed; percent, None if not measured."""

    arm: str
    seed: int
    budgets: tuple[str, ...]
    steps: tuple[int, ...] = ()  # of each phase
    flops: float = 0.0  # of all steps
    knn_top1: float | None = None
    linear_top1: float | None = None
    finetune_top1: float | None = None
    untrained_top1: float | None = None  # kNN before the first step
    pixels_top1: float | None = None  # kNN of raw pixels
    seconds: float | None = None  # of all steps of pretraining, from the median step
    failure: str = ""  # why pretraining failed


def check(
    configs: Mapping[str, ConfigDict], evaluations: Mapping[str, ConfigDict], devices: int
) -> None:
    """Raises a ValueError for the first invalid config of the study, before anything runs."""
    grid.check(list(configs.items()), devices)
    for task, config in evaluations.items():
        config = config.copy_and_resolve_references()
        config.pretrained, config.from_scratch = "of an arm", False
        try:
            supervised.check(run.fit_batch(config, _READY, devices), devices)
        except ValueError as error:
            raise ValueError(f"--{task}: {error}") from None


def run_all(
    jobs: Sequence[Job],
    seeds: Sequence[int],
    folder: pathlib.Path,
    evaluations: Mapping[str, ConfigDict],
    network: ConfigDict,
    devices: Sequence[Any],
    sources: Sources | None = None,
) -> list[Result]:
    """Returns the results of all arms, seed by seed; runs what has no result yet.

    Args:
      jobs: the plan.
      seeds: each job runs with each of them.
      folder: of the study.
      evaluations: config by task: linear, finetune.
      network: config of the contrastive arm, whose network the untrained arm has.
      devices: `jax.Device`s.
      sources: images; default those of the configs.

    Raises:
      ValueError: if the folder contains other runs.
      loop.Interrupted: after SIGINT or SIGTERM; the same call resumes.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out={folder} is not a folder; change --out")
    planned = [(seed, job) for seed in seeds for job in jobs]
    left = sum(job.flops for _, job in planned)
    found, begun, done = [], time.monotonic(), 0.0
    for number, (seed, job) in enumerate(planned, start=1):
        path = grid.workdir(folder, job.label, seed)
        more = ""
        if done and left:  # finished runs take no time
            seconds = (time.monotonic() - begun) / done * left
            more = f"; about {progress.duration(seconds)} left"
        print(f"run {number} of {len(planned)}: {job.label}, seed {seed}{more}", flush=True)
        fresh = bool(job.phases) and not grid.is_finished(path / job.phases[-1].pretext)
        found.append(_run(job, seed, path, evaluations, network, devices, sources))
        left -= job.flops
        done += job.flops * fresh
    return found


def _run(
    job: Job,
    seed: int,
    path: pathlib.Path,
    evaluations: Mapping[str, ConfigDict],
    network: ConfigDict,
    devices: Any,
    sources: Sources | None,
) -> Result:
    """Returns the result of an arm with one seed: pretraining, then each evaluation."""
    result = Result(job.arm, seed, job.budgets, job.steps, job.flops)
    encoder: pathlib.Path | None = None
    measured: dict[str, Any] = {}
    for phase in job.phases:
        config = phase.config.copy_and_resolve_references()
        config.seed, config.init = seed, str(encoder or "")
        encoder = path / phase.pretext
        last = grid.run_one(job.label, config, encoder, devices, sources, moves=["init"])
        if last.failure:
            return dataclasses.replace(result, failure=f"{phase.pretext}: {last.failure}")
        measured.setdefault("seconds", 0.0)
        measured["seconds"] += last.seconds
        measured = {**_first_knn(encoder), **measured, "knn_top1": last.knn_top1}
    for task, config in evaluations.items():
        config = config.copy_and_resolve_references()
        config.seed, config.name = seed, f"{job.arm}_{task}"
        if encoder is None:
            _from_scratch(config, network)
        else:
            config.pretrained, config.from_scratch = str(encoder), False
        measured[f"{task}_top1"] = _evaluated(config, path / task, devices, sources)
    return dataclasses.replace(result, **measured)


def _first_knn(path: pathlib.Path) -> dict[str, float | None]:
    """Returns the kNN accuracies before the first step of a run."""
    lines = [line for line in grid.read_lines(path / "metrics.jsonl") if "knn_top1" in line]
    first = lines[0] if lines and lines[0]["step"] == 0 else {}
    return {
        "untrained_top1": first.get("knn_top1"),
        "pixels_top1": first.get("knn_top1_pixels"),
    }


def _from_scratch(config: ConfigDict, network: ConfigDict) -> None:
    """Makes an evaluation start from random weights of a network, whose fixed positions stay."""
    pool = config.model.pool
    config.pretrained, config.from_scratch = "", True
    config.model.update({key: network.model[key] for key in config.model if key in network.model})
    if pool != BASES[config.task]().model.pool:  # as with a pretrained encoder
        config.model.pool = pool
    config.data.update({k: network.data[k] for k in ("image_size", "eval_resize", "mean", "std")})


def _evaluated(
    config: ConfigDict, path: pathlib.Path, devices: Any, sources: Sources | None
) -> float | None:
    """Returns top-1 of the best head, None if it failed; reads it if the run is finished."""
    grid.check_same(config, path, BASES[config.task](), moves=["pretrained"])
    if not grid.is_finished(path):
        try:
            rows = evaluate.evaluate(config, path, devices=devices, sources=sources, last=False)
            result = {"top1": results.best(rows).top1, "failure": ""}
        except loop.NotFinite as error:  # also a result: nothing is learned from this encoder
            result = {"top1": None, "failure": str(error).partition(".")[0]}
        grid.write(path / grid.RESULT, result)
    return grid.read(path / grid.RESULT)["top1"]
