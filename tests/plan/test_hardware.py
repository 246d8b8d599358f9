import dataclasses

import pytest

from moco_jax.plan.hardware import CHIPS


@pytest.mark.parametrize("kind", CHIPS)
def test_the_values_of_each_chip_are_plausible(kind):
    chip = CHIPS[kind]
    assert 8 <= chip.memory_gib <= 300
    assert 50e12 <= chip.peak_flops <= 3000e12  # dense bfloat16, not sparse
    assert 300 <= chip.memory_gb_per_s <= 10_000 and 60 <= chip.link_gb_per_s <= 2000
    assert 1 <= chip.chips_per_host <= 8
    assert 4 <= chip.vcpus_per_host / chip.chips_per_host <= 64
    assert chip.host and chip.sources
    assert set(chip.unsourced) <= {field.name for field in dataclasses.fields(chip)}


def test_tpus_have_a_topology_and_gpus_none():
    for kind, chip in CHIPS.items():
        assert chip.is_tpu == ("TPU" in chip.title) == bool(chip.pod_chips), kind
        assert chip.is_tpu or chip.devices_per_chip == 1


def test_facts_of_common_chips():
    v5e, h100 = CHIPS["v5e"], CHIPS["h100"]
    assert (v5e.memory_gib, v5e.peak_flops, v5e.pod_chips) == (16, 197e12, 256)
    assert (h100.memory_gib, h100.chips_per_host, h100.vcpus_per_host) == (80, 8, 208)
