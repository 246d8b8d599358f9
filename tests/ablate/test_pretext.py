"""Tests the plan of the study of pretexts, its runs, resuming, the table and the plot."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from moco_jax.ablate import grid, pretext, pretext_report, pretext_runs
from moco_jax.ablate.pretext_runs import Result
from moco_jax.pretraining import pretrain
from moco_jax.supervised import evaluate
from moco_jax.training import loop
from tests.ablate.experiment import get_config
from tests.supervised.tiny import task_config
from tests.tiny import tiny_sources

CONFIGS = {
    "contrastive": get_config("v3_vit"),
    "masked": get_config("mae"),
    "both": get_config("v3_mae"),
}
IMAGES = 96  # of `tiny_sources`: 3 steps an epoch
FLOPS = {"contrastive": 4e9, "masked": 1e9, "both": 5e9}
ALL = ("contrastive", "masked", "both", "masked_then_contrastive", "untrained")


def lengths(jobs):
    return [(job.arm, job.budgets, job.steps) for job in jobs]


def test_arms_have_equal_steps_and_equal_compute():
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    configs["contrastive"].steps, configs["contrastive"].epochs = None, 10.0  # 30 steps
    jobs = pretext.plan(configs, ALL, pretext.BUDGETS, FLOPS, IMAGES)
    assert lengths(jobs) == [
        ("contrastive", ("steps", "compute"), (30,)),
        ("masked", ("steps",), (30,)),
        ("both", ("steps",), (30,)),
        ("masked_then_contrastive", ("steps",), (15, 15)),
        ("untrained", ("steps", "compute"), ()),
        ("masked", ("compute",), (120,)),
        ("both", ("compute",), (24,)),
        ("masked_then_contrastive", ("compute",), (60, 15)),
    ]
    assert [job.label for job in jobs][3:6] == [
        "masked_then_contrastive/15_and_15_steps",
        "untrained",
        "masked/120_steps",
    ]
    assert [job.flops / 1e9 for job in jobs] == [120, 30, 150, 75, 0, 120, 120, 120]


@pytest.mark.parametrize("seed", range(20))
def test_arms_of_equal_compute_differ_by_half_a_step_of_the_last_phase(seed):
    rng = np.random.default_rng(seed)
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    configs["contrastive"].steps = steps = int(10 ** rng.uniform(0, 6))
    flops = {arm: 10 ** rng.uniform(3, 15) for arm in FLOPS}
    budget = steps * flops["contrastive"]
    for job in pretext.plan(configs, ALL[:4], ["compute"], flops, IMAGES):
        if min(job.steps) > 1:  # a phase has one step or more
            assert abs(job.flops - budget) <= job.phases[-1].flops / 2 + 1e-9 * budget


def test_the_phases_of_equal_steps_have_all_steps():
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    configs["contrastive"].steps = 93
    (job,) = pretext.plan(configs, ALL[3:4], ["steps"], FLOPS, IMAGES)
    assert job.steps == (46, 47)


def test_warmup_keeps_its_fraction_of_the_run():
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    configs["masked"].steps, configs["masked"].epochs = None, 40.0  # 120 steps with 1 of 40 epochs
    jobs = pretext.plan(configs, ALL[:4], ["compute"], FLOPS, IMAGES)
    found = {
        (job.arm, phase.pretext): (phase.config.steps, phase.config.warmup_epochs)
        for job in jobs
        for phase in job.phases
    }
    assert found["contrastive", "contrastive"] == (4, 1.0)
    assert found["masked", "masked"] == (16, pytest.approx(16 / 3 / 40))
    assert found["masked_then_contrastive", "contrastive"] == (2, 0.5)


def test_the_second_phase_has_the_positions_of_the_first():
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    configs["masked"].model.positions = "learned"
    jobs = pretext.plan(configs, ALL[:4], ["steps"], FLOPS, IMAGES)
    assert [p.config.model.positions for p in jobs[-1].phases] == ["learned", "learned"]
    assert jobs[0].phases[0].config.model.positions == "sincos"


def test_operations_count_once_and_grow_with_the_batch():
    config = CONFIGS["contrastive"]
    double, again = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    double.batch_size = 64
    again.microbatches, again.remat, again.data.canvas = 2, True, 64
    count = pretext.count_flops(config, IMAGES)
    assert pretext.count_flops(double, IMAGES) == pytest.approx(2 * count, rel=0.1)
    assert pretext.count_flops(again, IMAGES) == count
    # Products of a block, 12 d^2 weights, and of the patches, on 5 tokens of 24 numbers. Both
    # encoders see 32 images forward, one of them backward for twice the work.
    products = 2 * 4 * 32 * (12 * 24**2 * 5 + 4 * 48 * 24)
    assert products < count < 2 * products


def test_operations_are_recorded_until_the_config_changes(tmp_path):
    counted = []

    def count(config, images):
        counted.append(config.model.depth)
        return 10.0 * len(counted)

    def ask(**changes):
        config = CONFIGS["contrastive"].copy_and_resolve_references()
        config.update(changes)
        file = tmp_path / "study" / "flops.json"
        return pretext.flops_once({"contrastive": config}, IMAGES, file, count)

    assert ask() == ask(steps=7, seed=3) == {"contrastive": 10.0}
    assert ask(model={"depth": 3}) == {"contrastive": 20.0}
    assert counted == [1, 3]


@pytest.fixture
def started(monkeypatch):
    """Returns the folders in which a run started, and a set of those that are interrupted once."""
    done, stops = [], set()

    def counted(real):
        def run(config, folder, **kwargs):
            name = "/".join(folder.parts[-4:])
            done.append(name)
            if name in stops:
                stops.remove(name)
                raise loop.Interrupted("stopped", by=signal.SIGTERM)
            return real(config, folder, **kwargs)

        return run

    monkeypatch.setattr(pretrain, "pretrain", counted(pretrain.pretrain))
    monkeypatch.setattr(evaluate, "evaluate", counted(evaluate.evaluate))
    return done, stops


def evaluations(**changes):
    found = {task: task_config(task, steps=3, **changes) for task in ("linear", "finetune")}
    for config in found.values():
        config.bn_groups, config.baseline = 1, False
    return found


def test_a_study_resumes_and_ends_in_a_table(tmp_path, started, capsys):
    done, stops = started
    # The second phase is interrupted, and an evaluation.
    jobs = pretext.plan(CONFIGS, ALL[3:], ["steps"], FLOPS, IMAGES)
    network, device = CONFIGS["contrastive"], jax.devices()[:1]
    then = "masked_then_contrastive/2_and_2_steps/seed_3"
    stops |= {f"{then}/contrastive", "study/untrained/seed_3/finetune"}

    def run(folder=tmp_path / "study", **changes):
        return pretext_runs.run_all(
            jobs, [3], folder, evaluations(**changes), network, device, tiny_sources()
        )

    for _ in range(2):
        with pytest.raises(loop.Interrupted):
            run()
    results = run()
    assert done == [
        *(f"{then}/{part}" for part in ("masked", "contrastive")),
        *(f"{then}/{part}" for part in ("contrastive", "linear", "finetune")),
        *(f"study/untrained/seed_3/{part}" for part in ("linear", "finetune", "finetune")),
    ]
    count = len(done)
    assert run() == results and len(done) == count  # all read from files
    trained, scratch = results
    assert (trained.steps, scratch.steps) == ((2, 2), ())
    assert all(run.linear_top1 is not None and run.finetune_top1 is not None for run in results)
    phases = [tmp_path / "study" / then / name for name in ("masked", "contrastive")]
    first, last = (
        [line["knn_top1"] for line in grid.read_lines(path / "metrics.jsonl") if "knn_top1" in line]
        for path in phases
    )
    assert (trained.untrained_top1, trained.knn_top1) == (first[0], last[-1])
    assert trained.pixels_top1 is not None and scratch.knn_top1 is None
    # The second phase starts from the backbone of the first, which is none of its own.
    assert json.loads((phases[1] / "study.json").read_text())["init"] == str(phases[0])
    assert "--config.init: " in capsys.readouterr().out

    # A moved study is the same; another config is not.
    moved = (tmp_path / "study").rename(tmp_path / "moved")
    assert run(moved) == results and len(done) == count
    with pytest.raises(ValueError, match=r"linear contains a run with another config \(lr_drops"):
        run(moved, lr_drops=(0.5,))


@pytest.mark.parametrize(("given", "used"), [("cls", "mean"), ("mean", "mean")])
def test_the_untrained_arm_has_the_network_and_the_images_of_the_others(given, used, monkeypatch):
    seen = []
    monkeypatch.setattr(pretext_runs, "_evaluated", lambda config, *_: seen.append(config))
    network = CONFIGS["contrastive"].copy_and_resolve_references()
    network.model.pool, network.data.mean = "mean", (0.1, 0.2, 0.3)
    found = evaluations()["finetune"]
    found.model.pool, found.model.positions = given, "learned"
    (job,) = pretext.plan(CONFIGS, ("untrained",), ["steps"], FLOPS, IMAGES)
    pretext_runs.run_all([job], [5], pathlib.Path("none"), {"finetune": found}, network, [])
    (config,) = seen
    assert (config.seed, config.from_scratch, config.pretrained) == (5, True, "")
    assert (config.model.name, config.model.patch, config.model.depth) == ("vit_tiny", 4, 1)
    assert (config.model.pool, config.model.positions) == (used, "sincos")
    assert (config.data.image_size, config.data.mean) == (8, (0.1, 0.2, 0.3))


def test_an_arm_that_does_not_train_is_a_result(tmp_path, monkeypatch):
    def diverges(config, folder, **kwargs):
        raise loop.NotFinite("step 2: loss=nan. More follows.")

    monkeypatch.setattr(pretrain, "pretrain", diverges)
    jobs = pretext.plan(CONFIGS, ("masked",), ["steps"], FLOPS, IMAGES)
    for _ in range(2):
        (result,) = pretext_runs.run_all(
            jobs, [0], tmp_path, evaluations(), CONFIGS["contrastive"], jax.devices()[:1]
        )
        assert result.failure == "masked: step 2: loss=nan" and result.linear_top1 is None
    pretext_report.plot([result], tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("linear", {"lr": ()}, r"--linear: (?s:.*)lr=\(\) must be one or more"),
        ("finetune", {"batch_size": -1}, "--finetune: (?s:.*)batch_size=-1"),
        ("masked", {"lr": -1.0}, "masked: (?s:.*)lr=-1.0"),
    ],
)
def test_an_invalid_config_fails_before_any_run(name, changes, message):
    configs = {arm: config.copy_and_resolve_references() for arm, config in CONFIGS.items()}
    found = evaluations()
    (found | configs)[name].update(changes)
    with pytest.raises(ValueError, match=message):
        pretext_runs.check(configs, found, devices=1)


MEANS = "| 2 | 30 | 120 | 61.00 ± 1.41 | 70.00 ± 0.00 | 80.00 ± 0.00 | 1:00 |"
RESULTS = [
    Result("contrastive", 0, ("steps", "compute"), (30,), 12e13, 60.0, 70.0, 80.0, 20, 40, 59),
    Result("contrastive", 1, ("steps", "compute"), (30,), 12e13, 62.0, 70.0, 80.0, 22, 40, 61),
    Result("masked_then_contrastive", 0, ("steps",), (15, 15), 75e12, 50, 60, 70, 23, 40, 30),
    Result("untrained", 0, ("steps", "compute"), linear_top1=30.0, finetune_top1=75.0),
    Result("masked", 0, ("compute",), (120,), 12e13, failure="masked: step 2: loss=nan"),
]


def test_the_table_has_the_untrained_network_first_and_each_budget():
    head, _, *lines = pretext_report.table(RESULTS).splitlines()
    assert head == (
        "| equal | arm | runs | steps | TFLOP | kNN top-1, % | linear top-1, % | "
        "fine-tuned top-1, % | time |"
    )
    assert lines == [
        "| - | raw pixels | 2 | - | - | 40.00 ± 0.00 | - | - | - |",
        "| - | untrained | 2 | - | - | 21.00 ± 1.41 | 30.00 | 75.00 | - |",
        f"| steps | contrastive {MEANS}",
        "| steps | masked_then_contrastive | 1 | 15 + 15 | 75 | 50.00 | 60.00 | 70.00 | 0:30 |",
        f"| compute | contrastive {MEANS}",
        "| compute | masked | 0, 1 failed (masked: step 2: loss=nan) | 120 | 120 | - | - | - | - |",
    ]


def test_the_plot_is_a_file(tmp_path):
    pretext_report.plot(RESULTS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_plan_is_listed_before_it_runs():
    jobs = pretext.plan(CONFIGS, ALL, pretext.BUDGETS, FLOPS, IMAGES)
    assert list(pretext_report.listing(jobs))[2:6] == [
        ("steps", "both", "4", "5", "0.02"),
        ("steps", "masked_then_contrastive", "2 + 2", "1 + 4", "0.01"),
        ("steps and compute", "untrained", "0", "-", "0"),
        ("compute", "masked", "16", "1", "0.016"),
    ]
