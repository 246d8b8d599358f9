import pathlib

import pytest

from moco_jax.plan import nvidia
from moco_jax.plan.hardware import CHIPS
from moco_jax.plan.topology import Topology
from tests.conftest import run_command
from tests.plan.examples import GIB

ROOT = pathlib.Path(__file__).parents[2]


def test_every_gpu_has_a_target():
    assert set(nvidia.TARGETS) == {kind for kind, chip in CHIPS.items() if not chip.is_tpu}
    lines = nvidia._description("l4").splitlines()
    for line in (
        "  cuda_compute_capability { major: 8 minor: 9 feature_extension: NONE }",
        "  core_count: 58",
        "  memory_bandwidth: 300000000000",
        f"  device_memory_size: {45 * GIB // 2}",
        "  shared_memory_per_block_optin: 101376",
        'device_description_str: "NVIDIA L4"',
    ):
        assert line in lines


def test_hosts_must_have_equal_numbers_of_gpus():
    with pytest.raises(ValueError, match="9 GPUs cannot be divided equally among 2 hosts of 8"):
        nvidia.devices(Topology("h100", (9,)))


@pytest.mark.skipif(not nvidia.has_compiler(), reason="needs JAX for CUDA")
def test_the_gpu_compiler_gives_memory_and_collectives():
    config, length = ROOT / "configs" / "digits.py", "--config.steps=1"
    done = run_command(ROOT, "moco_jax.plan", f"--config={config}", length, "--topology=h100:8")
    assert done.returncode == 0, done.stderr
    assert "cuDNN's workspaces are not included" in done.stdout
    assert "all-reduce MB" in done.stdout and "all-to-all MB" in done.stdout
    assert "estimate by the CPU compiler" not in done.stdout
