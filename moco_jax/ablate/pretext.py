"""The plan of the study of pretexts: how long each arm trains at equal steps, at equal compute."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from moco_jax.ablate import grid
from moco_jax.ablate.arms import THEN, UNTRAINED
from moco_jax.plan.program import abstract_step, counting_layout
from moco_jax.training.flat_config import flatten
from moco_jax.training.optimizers import total_steps

BUDGETS = ("steps", "compute")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A pretraining run of an arm.

    Attributes:
      pretext: of its steps; the name of its folder.
      config: with its length in `steps`.
      flops: floating-point operations of a step.
    """

    pretext: str
    config: ConfigDict
    flops: float


@dataclasses.dataclass(frozen=True)
class Job:
    """An arm with a length; it runs once with each seed.

    Attributes:
      arm: its name.
      budgets: for which it has this length.
      phases: one after the other; each starts from the backbone of the last one.
    """

    arm: str
    budgets: tuple[str, ...]
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of each phase."""
        return tuple(phase.config.steps for phase in self.phases)

    @property
    def flops(self) -> float:
        """The floating-point operations of all steps."""
        return sum(phase.flops * phase.config.steps for phase in self.phases)

    @property
    def label(self) -> str:
        """The folder of the arm below that of the study: budgets of one length share it."""
        return f"{self.arm}/{'_and_'.join(map(str, self.steps))}_steps" if self.steps else self.arm


def plan(
    configs: Mapping[str, ConfigDict],
    arms: Sequence[str],
    budgets: Iterable[str],
    flops: Mapping[str, float],
    images: int,
) -> list[Job]:
    """Returns what runs with each seed.

    With the budget 'steps' each arm has the steps of the contrastive arm, with 'compute' as many
    as have the floating-point operations of the contrastive arm. Masked-then-contrastive spends
    half of the budget on each. Warm-up keeps its fraction of the run.

    Args:
      configs: of the contrastive arm and of those that `arms` need.
      arms: chosen.
      budgets: of `BUDGETS`.
      flops: of a step of each config.
      images: number of training images.
    """
    costs = {"steps": dict.fromkeys(flops, 1.0), "compute": flops}  # of a step
    steps = _steps(configs["contrastive"], images)
    found: dict[tuple[str, tuple[int, ...]], Job] = {}
    for budget in budgets:
        cost = costs[budget]
        for arm in arms:
            phases, left = [], steps * cost["contrastive"]
            for pretext, fraction in _shares(arm):
                length = max(1, round(left * fraction / cost[pretext]))
                left -= length * cost[pretext]
                config = _with_length(configs[pretext], length, images)
                if arm == THEN:  # the backbone of the first phase must fit the second
                    config.model.positions = configs["masked"].model.positions
                phases.append(Phase(pretext, config, flops[pretext]))
            job = Job(arm, (budget,), tuple(phases))
            same = found.get((arm, job.steps))
            budgets_of = (*same.budgets, budget) if same else job.budgets
            found[arm, job.steps] = dataclasses.replace(job, budgets=budgets_of)
    return list(found.values())


def _shares(arm: str) -> tuple[tuple[str, float], ...]:
    """Returns the phases of an arm: pretext and fraction of the budget that is left."""
    if arm == THEN:
        return (("masked", 0.5), ("contrastive", 1.0))
    return () if arm == UNTRAINED else ((arm, 1.0),)


def _steps(config: ConfigDict, images: int) -> int:
    return total_steps(config, max(1, images // config.batch_size))


def _with_length(config: ConfigDict, steps: int, images: int) -> ConfigDict:
    """Returns a copy of a config that runs for these steps, with warm-up in proportion."""
    warmup = config.warmup_epochs * steps / _steps(config, images)
    config = config.copy_and_resolve_references()
    config.steps, config.epochs, config.warmup_epochs = steps, None, warmup
    return config


def count_flops(config: ConfigDict, images: int) -> float:
    """Returns the floating-point operations of a train step, counted by XLA.

    They are those of the program for a CPU before it is optimised, so the number is the same on
    every machine. Operations that are done again to save memory do not count.

    Args:
      config: of pretraining, validated.
      images: number of training images.

    Raises:
      ValueError: if JAX may not use the CPU.
    """
    layout = counting_layout()
    config = config.copy_and_resolve_references()
    config.microbatches, config.remat = 1, False
    config.data.canvas = config.data.image_size  # the views of larger images cost more
    step, *arguments = abstract_step(config, layout, images)
    return step.lower(*arguments).cost_analysis()["flops"]


def flops_once(
    configs: Mapping[str, ConfigDict],
    images: int,
    file: pathlib.Path | None,
    count: Callable[[ConfigDict, int], float] = count_flops,
) -> dict[str, float]:
    """Returns the floating-point operations of a step of each config; records them in a file.

    Another version of JAX may count others. The lengths of a study that has begun must not change.
    """
    known = grid.read(file) if file and file.exists() else {}
    for arm, config in configs.items():
        recipe = json.loads(json.dumps(flatten(config)))
        for key in ("seed", "steps", "epochs", "warmup_epochs", "name"):
            recipe.pop(key)
        if known.get(arm, {}).get("config") != recipe:
            known[arm] = {"flops": count(config, images), "config": recipe}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        grid.write(file, known)
    return {arm: known[arm]["flops"] for arm in configs}
