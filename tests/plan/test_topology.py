import importlib.util
import re

import pytest

from moco_jax.plan import topology
from moco_jax.plan.planner import parse_topologies
from moco_jax.plan.topology import Topology


def test_names_of_topologies():
    assert topology.parse("v5e:4x4") == Topology("v5e", (4, 4))
    pod = topology.parse("V4:8x8x8")
    assert (pod.chips, pod.devices, pod.hosts, str(pod)) == (512, 512, 128, "v4:8x8x8")
    assert topology.parse("v3:4x4").devices == 32  # a device is a core of the chip
    machines = topology.parse("h100:12")
    assert (machines.chips, machines.hosts) == (12, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5lite:4x4", "unknown chip 'v5lite'; did you mean 'v5e'? allowed: v3, v4, v5e"),
        ("a100:8", "did you mean 'a100-40' or 'a100-80'?"),
        ("v5e", "--topology=v5e is malformed; a TPU v5e slice has 2 dimensions"),
        ("v5e:4by4", "is malformed"),
        ("v5e:0x4", "is malformed"),
        ("v4:4x4", "has 2 dimensions; a TPU v4 slice has 3 dimensions"),
        (
            "v5e:32x32",
            "has 1024 chips; a TPU v5e slice has 2 dimensions, the first two even, and at most 256",
        ),
        ("h100:2x4", "has 2 dimensions; for H100 SXM GPUs give their number, such as h100:8"),
    ],
)
def test_wrong_topologies_raise(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        topology.parse(name)


def test_without_the_tpu_compiler_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'moco-jax\[plan\]'"):
        parse_topologies(["h100:8", "v5e:4x4"])
    assert parse_topologies(["h100:8"]) == [Topology("h100", (8,))]
