"""The results that a machine is checked against, and faults that must be seen."""

import functools
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from moco_jax.check import arithmetic, mechanisms, rounding
from moco_jax.check.findings import Verdict
from moco_jax.contrastive.dictionaries import queue
from moco_jax.parallel.mesh import make_layout
from tests.check.make_references import SMALL, computed, sensitivity

Steps = mechanisms.Steps


@functools.cache
def prepared(title: str) -> Steps:
    return arithmetic.prepare("queue", arithmetic.ARITHMETICS[title], one_device())


def one_device():
    return make_layout(jax.devices()[:1])


def run(steps: Steps) -> mechanisms.Results:
    return mechanisms.run(steps, mechanisms.references()["queue"].first)


def judged(found: mechanisms.Results, title: str = "exact float32"):
    return arithmetic.compared("queue", title, found, mechanisms.references()["queue"])


@pytest.mark.parametrize("name", ["queue", *(n for n in mechanisms.MECHANISMS if n != "queue")])
def test_the_references_are_those_of_the_step(name):
    reference = mechanisms.references()[name]
    found = computed(name, reference.first)
    assert found.updates.keys() == reference.updates.keys()
    assert mechanisms.deviation(found, reference).largest < 1e-9
    # A correct device may sum in any order.
    assert sensitivity(name, reference.first, trials=8) < SMALL


def test_a_batch_that_rounding_errors_move_is_seen():
    assert sensitivity("queue", 10, trials=8) > 1  # one of its ReLUs has an input of almost 0


@pytest.mark.parametrize("title", arithmetic.ARITHMETICS)
def test_a_right_step(title):
    finding = judged(run(prepared(title)), title)
    assert finding.verdict is Verdict.OK and not finding.advice, finding.text


@pytest.mark.parametrize(
    ("title", "begin"), [("float32", "1 step in float32 differs"), ("exact float32", "5 steps in ")]
)
def test_the_line_says_how_many_steps(title, begin):
    finding = judged(mechanisms.references()["queue"], title)
    assert finding.text.startswith(begin)


def test_only_exact_float32_asks_for_exact_products():
    exact, *others = (prepared(t).step.as_text().count("highest") for t in arithmetic.ARITHMETICS)
    assert all(exact > 2 * other for other in others), (exact, others)


@pytest.mark.parametrize("factor", [1.01, 0.5])
def test_a_wrong_temperature_is_seen(factor, monkeypatch):
    right = queue.info_nce

    def wrong(*arguments, temperature, **options):
        return right(*arguments, temperature=temperature * factor, **options)

    monkeypatch.setattr(queue, "info_nce", wrong)
    finding = judged(run(mechanisms.prepare(mechanisms.queue(), one_device())))
    assert finding.verdict is Verdict.WRONG
    assert "allowed: 1e-04" in finding.text and "do not train here" in finding.advice


def perturbed(steps: Steps, change) -> Steps:
    """Returns steps on a device that returns other parameters."""

    def step(state, *inputs):
        state, metrics = steps.step(state, *inputs)
        return state.replace(params=jax.tree.map(change, state.params)), metrics

    return steps._replace(step=step)


@pytest.mark.parametrize(
    "change", [lambda x: x * 1.001, lambda x: x + 1e-3, lambda x: x.at[(0,) * x.ndim].set(np.nan)]
)
def test_a_perturbed_device_is_seen(change):
    finding = judged(run(perturbed(prepared("exact float32"), change)))
    assert finding.verdict is Verdict.WRONG


@pytest.mark.parametrize("part", ["key_params", "batch_stats", "dictionary"])
def test_every_part_of_the_state_counts(part):
    steps = prepared("exact float32")

    def step(state, *inputs):
        changed, metrics = steps.step(state, *inputs)
        return changed.replace(
            **{part: jax.tree.map(lambda x: -x, getattr(changed, part))}
        ), metrics

    one = lambda step: run(steps._replace(step=step))  # noqa: E731
    away = mechanisms.deviation(one(step), one(steps.step))
    assert away.update > arithmetic.ARITHMETICS["exact float32"].limit.update


@pytest.mark.parametrize("part", ["params", "key_params", "batch_stats", "dictionary"])
def test_a_nan_in_any_part_of_the_state_is_seen(part):
    steps = prepared("exact float32")

    def step(state, *inputs):
        changed, metrics = steps.step(state, *inputs)
        spoiled = jax.tree.map(lambda x: x * np.nan, getattr(changed, part))
        return (changed.replace(**{part: spoiled}) if next(calls) == 4 else changed), metrics

    calls = itertools.count()
    finding = judged(run(steps._replace(step=step)))
    assert finding.verdict is Verdict.WRONG and "update nan" in finding.text


def test_an_interrupt_does_not_wait_for_what_compiles(monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(mechanisms, "prepare", lambda *_, **__: free.wait(60))
    monkeypatch.setattr(arithmetic, "_compared", lambda *_: None)
    checks = arithmetic.checks()
    next(checks)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        checks.throw(KeyboardInterrupt)
    assert time.monotonic() - begun < 30
    free.set()


def test_nan_is_seen():
    steps = prepared("exact float32")
    assert arithmetic.guarded(steps).verdict is Verdict.OK


def test_a_hidden_nan_is_wrong():
    steps = prepared("exact float32")

    def hiding(state, *inputs):
        state, metrics = steps.step(state, *inputs)
        return steps.start(), metrics | {"loss": 1.0}

    finding = arithmetic.guarded(steps._replace(step=hiding))
    assert finding.verdict is Verdict.WRONG and "XLA_FLAGS" in finding.advice


def test_all_devices_compute_what_one_computes():
    finding = arithmetic.check_devices()
    assert finding.verdict is Verdict.OK and finding.text.startswith("8 devices and one")
    assert "differ by: loss " in finding.text and finding.text.endswith("1e-04, 1e-03, 3e-02")


def test_rounding_errors_of_these_batches_are_allowed(monkeypatch):
    errors = mechanisms.Deviation(loss=0.01, gradient=0.0, update=0.001)
    monkeypatch.setattr(rounding, "sensitivity", lambda *_, **__: errors)
    allowed = mechanisms.Deviation(**arithmetic.check_devices().values["limit"])
    assert allowed == arithmetic.ARITHMETICS["exact float32"].limit._replace(loss=0.03)


def test_wrong_collectives_are_seen(monkeypatch):
    right = mechanisms.run
    several = lambda steps: steps.layout.devices > 1  # noqa: E731
    monkeypatch.setattr(
        mechanisms,
        "run",
        lambda s, first=0: right(perturbed(s, lambda x: x * 1.01) if several(s) else s, first),
    )
    finding = arithmetic.check_devices()
    assert finding.verdict is Verdict.WRONG and "collective" in finding.advice
    assert finding.text.endswith("; allowed: 1e-04, 1e-03, 3e-02")


@pytest.mark.parametrize(
    ("away", "verdict"), [(1e-7, Verdict.OK), (0.2, Verdict.SKIPPED), (np.nan, Verdict.WRONG)]
)
def test_devices_are_not_judged_where_rounding_errors_decide(away, verdict, monkeypatch):
    monkeypatch.setattr(rounding, "sensitivity", lambda *_, **__: mechanisms.Deviation(0, 0.5, 0))
    found = mechanisms.Deviation(0, away, 0)
    monkeypatch.setattr(mechanisms, "deviation", lambda *_: found)
    finding = arithmetic.check_devices()
    assert finding.verdict is verdict
    assert ("rounding errors alone" in finding.text) == (verdict is Verdict.SKIPPED)
