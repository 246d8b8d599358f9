import math

import pytest

from moco_jax.plan import forecast
from moco_jax.plan.collectives import Array, Collective
from moco_jax.plan.forecast import Forecast
from moco_jax.plan.topology import Topology
from tests.plan.examples import GIB, RUN, example
from tests.tiny import tiny_config


def test_the_table():
    assert [line.split() for line in forecast.table([example()]).splitlines()] == [
        "Memory, GiB per chip:".split(),
        ["topology", "chips", "batch", "images/chip"]
        + "state input temporaries program total usable fits".split(),
        "v5e:4x4 16 1024 64 1.00 2.50 8.00 0.50 12.00 15.75 yes".split(),
        [],
        "Work per chip and step:".split(),
        ["topology", "TFLOP", "GB", "moved", "M", "cycles"]
        + "all-reduce MB all-to-all MB compile time".split(),
        "v5e:4x4 78.800 300.0 750.0 100.00 19.27 83 s".split(),
        [],
        "Speed of all chips, and the whole run:".split(),
        "topology bound step ms images/s from to images/s/vCPU epochs/day hours".split(),
        # (.5 s + 219.27 MB at 200 GB/s) / .5; 4 hosts of 112 vCPUs; 1024 x 86400 / 1281167 epochs
        "v5e:4x4 cycles 1002.2 1022 757 1379 2 68.9 34.8".split(),
    ]


def test_the_price_of_the_run():
    found = example()
    *_, header, row = forecast.table([found], price=1.2).splitlines()
    assert header.split()[-1] == "USD"
    assert float(row.split()[-1]) == pytest.approx(found.hours * 16 * 1.2, abs=0.5)


def bounded(kind="h100", chips=8, run=RUN, efficiency=0.5, **changes) -> Forecast:
    facts = {"cycles": 0, "platform": "gpu", "flops": 1e12, "bytes_moved": 1e9, "collectives": []}
    program = example(**facts | changes).program
    return Forecast(Topology(kind, (chips,)), program, run, efficiency)


def test_the_slowest_bounds_the_step():
    run = RUN._replace(dtype="bfloat16", streamed=False)
    found = bounded(run=run, flops=98.9e12)
    assert found.bound == "matrix units" and found.step_seconds == pytest.approx(0.2)
    assert bounded(run=run._replace(dtype="float32"), flops=98.9e12).step_seconds == (
        pytest.approx(0.4)
    )
    found = bounded(run=run, bytes_moved=335.2e9)
    assert found.bound == "memory" and found.step_seconds == pytest.approx(0.2)
    move = Collective("all-to-all", (Array("bf16", (225, 500_000, 200)),), 1, "")
    found = bounded(run=run, flops=0.0, bytes_moved=0.0, collectives=[move])
    assert found.step_seconds == pytest.approx(0.2)
    found = bounded(run=RUN, chips=4)  # 1024 images at 400 a second for each of 104 vCPUs
    assert found.bound == "decoding" and found.decode_per_vcpu == pytest.approx(400)
    unknown = bounded(run=RUN, flops=math.nan, bytes_moved=math.nan)
    assert unknown.bound == "?" and math.isnan(unknown.step_seconds)


def test_images_that_fit_in_device_memory_are_not_decoded_again():
    config = tiny_config(data__eval_resize=32, data__resident_megabytes=200)
    assert not forecast.run_of(config, 50_000).streamed
    assert forecast.run_of(config, 1_281_167).streamed


# Images/s that were measured or reported, and what the compilers find for one device:
# floating-point operations, bytes and cycles. benchmarks/results/pods.md has the sources.
RUNS = [
    ("h100", 256, 4570, {"flops": 8.38e12, "bytes_moved": 121.5e9}),
    ("h100", 512, 51_377, {"flops": 2.04e12, "bytes_moved": 15.0e9}),
    ("v3", 32, 232, {"flops": 1.2e12, "cycles": 94_650_000}),  # ViT-S, two cores
    ("v3", 32, 132, {"flops": 4.5e12, "cycles": 188_380_000}),
    ("v3", 32, 45.6, {"flops": 12e12, "cycles": 595_760_000}),
]


@pytest.mark.parametrize(("kind", "batch", "reported", "facts"), RUNS)
def test_runs_lie_in_the_range(kind, batch, reported, facts):
    run = RUN._replace(batch_size=batch, dtype="bfloat16", streamed=False)
    low, high = bounded(kind, 1, run, None, **facts).range
    assert low < reported < high


def test_columns_are_aligned():
    both = [example(), example(temporary_bytes=80 * GIB)]
    for table in forecast.table(both).split("\n\n"):
        assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_a_chip_of_two_devices_holds_the_memory_of_both():
    place = Topology("v3", (2, 2))
    found = Forecast(place, example().program, RUN)
    assert found.total_gib == pytest.approx(24)
    assert found.flops == pytest.approx(157.6e12)
    assert found.collective_bytes["all-to-all"] == 2 * 64 * 224 * 224 * 3 * 2
    assert forecast.table([found]).splitlines()[2].split()[:4] == ["v3:2x2", "4", "1024", "256"]


def test_some_chips_of_a_host_have_the_same_fraction_of_its_vcpus():
    found = Forecast(Topology("h100", (2,)), example().program, RUN)
    assert found.decode_per_vcpu == pytest.approx(found.images_per_second / (208 / 4))


def test_the_largest_batch_is_estimated_from_memory():
    large = example(temporary_bytes=24 * GIB)
    assert not large.fits
    # 15.75 - 1.5 GiB are free for input and temporaries, which take 26.5 at 1024 images.
    assert large.estimated_largest_batch() == pytest.approx(1024 * 14.25 / 26.5)
    unknown = example(temporary_bytes=math.nan)
    assert not unknown.fits and unknown.estimated_largest_batch() == 0
