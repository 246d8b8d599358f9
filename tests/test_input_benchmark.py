"""The input benchmark measures every stage and computes what hosts can feed."""

import contextlib
import dataclasses
import time

import jax
import numpy as np
import pytest

from moco_jax import input_benchmark as benchmark
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import hardware
from moco_jax.pretraining.run import build
from tests.tiny import tiny_config, tiny_sources


class Slow:
    """A data set whose batches take 0.3 s each, many times as long as a step."""

    def __init__(self, data):
        self._data = data

    def __getattr__(self, name):
        return getattr(self._data, name)

    def batches(self, plan, start=0):
        with contextlib.closing(self._data.batches(plan, start)) as batches:
            for batch in batches:
                time.sleep(0.3)
                yield batch


@pytest.fixture(scope="module")
def run():
    config = tiny_config(
        steps=10, data__canvas=16, data__resident_megabytes=0, knn__every_epochs=0.0
    )
    return build(config, make_layout(jax.devices()[:1]), tiny_sources())


def test_every_stage_has_a_rate(run):
    stages = [
        *benchmark.host_stages(tiny_sources().train, run.config, 0.0),
        *benchmark.device_stages(run, 0.0),
    ]
    names = [stage.name for stage in stages]
    assert names == ["reading", "decoding", "batching", "copying", "augmenting"]
    assert all(stage.rate > 0 for stage in stages)
    assert "2 views of 8" in stages[-1].what


def test_the_two_views_differ(run):
    batch = benchmark._first_batch(run)
    views = benchmark.draw_views(run)(0, run.data.arrays, batch)
    assert [view.shape for view in views] == [(32, 8, 8, 3)] * 2
    assert not np.array_equal(*views)


def test_waiting_for_data_is_measured(run):
    fast = {stage.name: stage for stage in benchmark.run_stages(run, steps=4)}
    assert list(fast) == ["feeding", "step", "training"]
    starved = dataclasses.replace(run, data=Slow(run.data))
    slow = {stage.name: stage for stage in benchmark.run_stages(starved, steps=4)}
    assert slow["feeding"].rate < 32 / 0.3 and slow["training"].rate < 32 / 0.3
    waited = int(slow["training"].what.split()[-1].rstrip("%"))
    assert waited > 60
    assert fast["feeding"].rate > slow["feeding"].rate


def test_flops_of_a_step_are_plausible(run):
    flops = benchmark.flops_per_image(run)
    # A lower bound for a ResNet-10 at an eighth of its width on 8x8 pixels: stem and first stage,
    # two forward passes and one backward pass that costs two, 2 FLOPs per multiplication.
    convolutions = 8 * 8 * 9 * (3 * 8 + 2 * 8 * 8)
    assert 4 * 2 * convolutions < flops < 1e9


def test_table_of_hosts():
    table = benchmark.hosts_table(decoding_per_core=700.0, flops=33e9, mfu=0.4).splitlines()
    [line] = [line for line in table if "v5e" in line]
    chip = hardware.CHIPS["v5e"]
    decodes, takes = 700 * chip.vcpus_per_host, 0.4 * chip.peak_flops * 4 / 33e9
    assert f"{decodes:,.0f}" in line and f"{takes:,.0f}" in line
    assert f"{decodes / takes:.2g} x" in line
    assert np.isclose(decodes / takes, 8.2, atol=0.05)


def test_source_without_readable_images(run):
    def gone(index):
        raise OSError("gone")

    source = dataclasses.replace(tiny_sources().train, read=gone)
    with pytest.raises(ValueError, match="none of the images drawn from .* can be read"):
        list(benchmark.host_stages(source, run.config, 0.0))
