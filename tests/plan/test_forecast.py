import math

import pytest

from moco_jax.plan import forecast
from moco_jax.plan.forecast import Forecast
from moco_jax.plan.topology import Topology
from tests.plan.examples import GIB, example


def test_the_table():
    assert [line.split() for line in forecast.table([example()]).splitlines()] == [
        "Memory, GiB per chip:".split(),
        ["topology", "chips", "batch", "images/chip"]
        + "state input temporaries program total usable fits".split(),
        "v5e:4x4 16 1024 64 1.00 2.50 8.00 0.50 12.00 15.75 yes".split(),
        [],
        "Speed; FLOPs and collectives per chip and step:".split(),
        ["topology", "TFLOP/chip", "all-reduce", "MB", "all-to-all", "MB", "step", "ms"]
        + "epochs/day images/s images/s/host images/s/vCPU compile time".split(),
        # 4 hosts of 112 vCPUs; 1024 x 86400 / 1281167 epochs
        "v5e:4x4 78.800 100.00 19.27 1000.0 69.1 1024 256 2 83 s".split(),
    ]


def test_columns_are_aligned():
    memory, speed = forecast.table([example(), example(temporary_bytes=80 * GIB)]).split("\n\n")
    for table in (memory, speed):
        assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_a_chip_of_two_devices_holds_the_memory_of_both():
    place = Topology("v3", (2, 2))
    found = Forecast(place, example().program, 256, 0.4, 1000)
    assert found.total_gib == pytest.approx(24)
    assert found.flops == pytest.approx(157.6e12)
    assert found.collective_bytes["all-to-all"] == 2 * 64 * 224 * 224 * 3 * 2
    assert forecast.table([found]).splitlines()[2].split()[:4] == ["v3:2x2", "4", "256", "64"]


def test_some_chips_of_a_host_have_the_same_fraction_of_its_vcpus():
    found = Forecast(Topology("h100", (2,)), example().program, 256, 0.4, 1000)
    assert found.decode_per_vcpu == pytest.approx(found.images_per_second / (208 / 4))


def test_the_largest_batch_is_estimated_from_memory():
    large = example(temporary_bytes=24 * GIB)
    assert not large.fits
    # 15.75 - 1.5 GiB are free for input and temporaries, which take 26.5 at 1024 images.
    assert large.estimated_largest_batch() == pytest.approx(1024 * 14.25 / 26.5)
    unknown = example(temporary_bytes=math.nan)
    assert not unknown.fits and unknown.estimated_largest_batch() == 0
