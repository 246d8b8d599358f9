"""Rates of links, steps and decoding, and what is slow."""

import dataclasses
import functools
import math
import time
import types

import pytest

from moco_jax import configs
from moco_jax.check import decoding, links, speed
from moco_jax.check.findings import Verdict


@functools.cache
def timed(name: str) -> speed.Timed:
    return speed.prepare(name)


def on_a_chip(timed: speed.Timed, monkeypatch, bytes_moved: float) -> speed.Timed:
    """Returns a step of a program that moves these bytes, as if this CPU were an H100."""
    monkeypatch.setattr(speed, "kind_of", lambda kind: "h100")
    monkeypatch.setattr(speed, "_seconds", lambda timed: 0.1)
    program = dataclasses.replace(timed.program, bytes_moved=bytes_moved, collectives=[])
    return timed._replace(program=program)


FIRST, *OTHERS = speed.names()


@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_step_on_a_cpu_is_timed(name):
    finding = speed.check(timed(name))
    assert finding.verdict is Verdict.OK and "nothing is expected of a CPU" in finding.text
    rate, size = finding.values["images_per_second"], finding.values["batch_size"]
    assert size == 16 * 8 and math.isfinite(rate) and rate > 0


def test_a_slow_chip_is_slow(monkeypatch):
    finding = speed.check(on_a_chip(timed(FIRST), monkeypatch, bytes_moved=1e9))
    assert finding.verdict is Verdict.SLOW and "nvidia-smi" in finding.advice
    low, high = finding.values["expected"]
    assert finding.values["images_per_second"] < low < high and "bound by memory" in finding.text


def test_a_network_between_gpus_has_no_limit(monkeypatch):
    monkeypatch.setattr(speed.jax, "process_count", lambda: 2)
    finding = speed.check(on_a_chip(timed(FIRST), monkeypatch, bytes_moved=1e9))
    assert finding.verdict is Verdict.OK and "network between hosts" in finding.text


def test_a_chip_that_is_as_fast_as_expected(monkeypatch):
    finding = speed.check(on_a_chip(timed(FIRST), monkeypatch, bytes_moved=1e15))
    assert finding.verdict is Verdict.OK and finding.values["model_flops_utilisation"] < 0.1


def test_processes_run_the_same_number_of_steps(monkeypatch):
    turns = []

    def median_seconds(work, times=1):
        turns.append(times)
        return 0.01

    monkeypatch.setattr(speed, "median_seconds", median_seconds)
    monkeypatch.setattr(speed.cluster, "largest", lambda value: value + 1)  # another one's
    speed._seconds(timed(FIRST))
    assert turns == [1, 51]


def test_an_unknown_chip_has_no_limit(monkeypatch):
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    device = types.SimpleNamespace(platform="gpu", device_kind=name)
    monkeypatch.setattr(speed.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(speed, "_seconds", lambda timed: 0.1)
    finding = speed.check(timed(FIRST))
    assert finding.verdict is Verdict.OK and "chip NVIDIA H100 80GB HBM3 MIG" in finding.text


def test_links_of_cpus_have_no_limit():
    finding = links.check()
    assert finding.verdict is Verdict.OK and set(finding.values) == {
        "all_reduce_gb_per_s",
        "all_to_all_gb_per_s",
    }
    assert all(rate > 0 for rate in finding.values.values())


def test_slow_links_are_slow(monkeypatch):
    monkeypatch.setattr(links, "kind_of", lambda kind: "h100")
    finding = links.check()
    assert finding.verdict is Verdict.SLOW and "a device's links have 450" in finding.text


def test_the_host_decodes_fast_enough(monkeypatch):
    monkeypatch.setattr(decoding, "_SHORTEST", 0.01)
    finding = decoding.check(configs.imagenet.get_config("v2").data, images_per_second=1.0)
    assert finding.verdict is Verdict.OK


def test_the_files_are_as_large_as_those_of_imagenet():
    sizes = [len(file) for file in decoding._files()]
    assert 90_000 < sum(sizes) / len(sizes) < 130_000


def test_a_throttled_decoder_is_slow(monkeypatch):
    right = decoding.decode

    def throttled(*arguments):
        time.sleep(0.02)
        return right(*arguments)

    monkeypatch.setattr(decoding, "decode", throttled)
    monkeypatch.setattr(decoding, "_SHORTEST", 0.01)
    config = configs.imagenet.get_config("v2").data
    config.threads = 1
    finding = decoding.check(config, images_per_second=100.0)
    assert finding.verdict is Verdict.SLOW and "waits" in finding.advice
