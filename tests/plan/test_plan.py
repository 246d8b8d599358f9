"""Planning a pod: names of topologies, what follows from a compiled step, and the command."""

import importlib.util
import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import pytest

from moco_jax.data.augment import recipes
from moco_jax.models import convolution
from moco_jax.models.resnet import padded_conv
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import __main__ as plan
from moco_jax.plan import forecast, nvidia, program, topology
from moco_jax.plan.collectives import Array, Collective
from moco_jax.plan.forecast import Forecast
from moco_jax.plan.hardware import CHIPS
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology
from tests.conftest import run_command
from tests.tiny import tiny_config

GIB = 2**30
ROOT = pathlib.Path(__file__).parents[2]


def test_names_of_topologies():
    assert topology.parse("v5e:4x4") == Topology("v5e", (4, 4))
    pod = topology.parse("V4:8x8x8")
    assert (pod.chips, pod.devices, pod.hosts, str(pod)) == (512, 512, 128, "v4:8x8x8")
    assert topology.parse("v3:4x4").devices == 32  # a device is a core there
    machines = topology.parse("h100:12")
    assert (machines.chips, machines.hosts) == (12, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5lite:4x4", "unknown chips 'v5lite'; did you mean 'v5e'? known: v3, v4, v5e"),
        ("a100:8", "did you mean 'a100-40' or 'a100-80'?"),
        ("v5e", "'v5e' is no topology; a TPU v5e slice has 2 dimensions"),
        ("v5e:4by4", "is no topology"),
        ("v5e:0x4", "is no topology"),
        ("v4:4x4", "has 2 dimensions; a TPU v4 slice has 3 dimensions"),
        (
            "v5e:32x32",
            "has 1024 chips; a TPU v5e slice has 2 dimensions, the first two even, and at most 256",
        ),
        ("h100:2x4", "has 2 dimensions; H100 SXMs are asked for by number, such as h100:8"),
    ],
)
def test_wrong_topologies_are_told(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        topology.parse(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'moco-jax\[plan\]'"):
        plan.places(["h100:8", "v5e:4x4"])
    assert plan.places(["h100:8"]) == [Topology("h100", (8,))]


def test_what_a_config_and_a_topology_say_against_each_other_is_told_at_once():
    asked = [Topology("h100", (8,)), Topology("h100", (3,)), Topology("h100", (5,))]
    with pytest.raises(ValueError) as error:
        plan.prepare(tiny_config(), asked)
    assert "h100:8" not in str(error.value)
    assert "h100:3: the config has 2 problems" in str(error.value)
    assert "batch_size=32 must divide by the 5 devices" in str(error.value)


def test_images_a_chip_make_the_batch():
    asked = [Topology("h100", (n,)) for n in (2, 4, 8)]
    prepared = plan.prepare(tiny_config(), asked, images=16)
    assert [config.batch_size for config, _, _ in prepared] == [32, 64, 128]


def example(**changes) -> Forecast:
    """Numbers that are easily reckoned: 1 + 5 x .5 + 8 + .5 GiB; 78.8 TFLOP are a second at .4."""
    moved = [
        Collective("all-reduce", (Array("f32", (25_000_000,)),), 1, ""),
        Collective("all-reduce", (Array("f32", (250,)),), 4, ""),
        Collective("all-to-all", (Array("bf16", (64, 224, 224, 3)),), 1, ""),
    ]
    facts = {"temporaries": 8 * GIB, "flops": 78.8e12, "moved": moved, "seconds": 83.4}
    facts |= {"state": GIB, "batch": GIB // 2, "code": GIB // 2, "platform": "tpu"} | changes
    return Forecast(Topology("v5e", (4, 4)), Program(**facts), 1024, 4, 0.4, 1_281_167)


def test_the_table():
    assert [line.split() for line in forecast.table([example()]).splitlines()] == [
        "topology chips batch images/chip state input temporaries program GiB/chip usable fits"
        "".split(),
        "v5e:4x4 16 1024 64 1.00 2.50 8.00 0.50 12.00 15.75 yes".split(),
        [],
        ["topology", "TFLOP/chip", "all-reduce", "MB", "all-to-all", "MB", "step", "ms"]
        + "epochs/day images/s a host a vCPU compiled in".split(),
        # 4 hosts of 112 vCPUs; 1024 x 86400 / 1281167 epochs
        "v5e:4x4 78.800 100.00 19.27 1000.0 69.1 1024 256 2 83 s".split(),
    ]


def test_columns_are_aligned():
    lines = forecast.table([example(), example(temporaries=80 * GIB)]).splitlines()
    assert len({len(line) for line in lines[:3]}) == len({len(line) for line in lines[4:]}) == 1


def test_a_chip_of_two_devices_holds_both():
    place = Topology("v3", (2, 2))
    whole = Forecast(place, example().program, 256, 4, 0.4, 1000)
    assert whole.total_gib == pytest.approx(24)
    assert whole.flops == pytest.approx(157.6e12)
    assert whole.moved["all-to-all"] == 2 * 64 * 224 * 224 * 3 * 2
    assert whole.images == 64


def test_a_part_of_a_host_has_a_part_of_its_processors():
    place = Topology("h100", (2,))
    rate = Forecast(place, example().program, 256, 4, 0.4, 1000)
    assert rate.decode_per_vcpu == pytest.approx(rate.images_per_second / (208 / 4))


def test_what_does_not_fit_and_which_batch_would():
    large = example(temporaries=24 * GIB)
    assert not large.fits
    # 15.75 - 1.5 GiB for what took 26.5 at 1024 images
    assert large.most_images() == pytest.approx(1024 * 14.25 / 26.5)
    config = tiny_config(batch_size=1024, queue_size=65536)
    assert plan.fitting_batch(config, devices=16, most=large.most_images()) == 512
    assert plan.fitting_batch(config, devices=16, most=15) is None
    line, *_ = plan.notes(config, large)
    assert line == "v5e:4x4: does NOT fit: 28.00 of 15.75 GiB"


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory on HBM, the total memory required for HLO temporaries (17.50G) exceeds "
        "available HBM (15.75G).",
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.50G of "
        "15.75G hbm. Exceeded hbm capacity by 1.75G.",
    ],
)
def test_a_refusal_is_read(message):
    refused = program._refused(f"RESOURCE_EXHAUSTED: {message}", GIB, GIB // 2, 9.0, "tpu")
    assert refused.temporaries == 16 * GIB
    assert refused.refusal == "needs 17.50G of 15.75G"
    row = forecast.table([example(**vars(refused))])
    assert "NO" in row and "?" in row


def light_config(**changes):
    """Crops only: colours would take most of the time to compile."""
    config = tiny_config(**changes)
    config.data.canvas = 16
    config.views = (recipes.cifar()[:1],) * 2
    return config


def test_what_the_compiler_tells_of_a_step_known_to_the_byte():
    layout = make_layout(jax.devices()[:8])
    state = jax.ShapeDtypeStruct((100, 100), jnp.float32, sharding=layout.replicated)
    batch = jax.ShapeDtypeStruct((64, 100), jnp.float32, sharding=layout.sharded())
    step = jax.jit(lambda state, batch: state - layout.replicate(batch.T @ batch), donate_argnums=0)
    told = program.compiled(step, state, batch)
    assert (told.state, told.batch) == (100 * 100 * 4, 8 * 100 * 4)
    assert told.flops == pytest.approx(2 * 8 * 100 * 100, rel=0.2)
    assert [(c.kind, c.bytes) for c in told.moved] == [("all-reduce", 100 * 100 * 4)]
    assert told.temporaries is not None and told.temporaries < 3 * 100 * 100 * 4


def test_a_cpus_own_convolutions_are_not_told_of(monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", 0)  # Winograd would have 4/9 of the products
    layout = make_layout(jax.devices()[:1])
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32, sharding=layout.replicated)
    images = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.float32, sharding=layout.sharded())
    conv = padded_conv(64, 3)
    step = jax.jit(lambda kernel, x: conv.apply({"params": {"kernel": kernel}}, x))
    told = program.compiled(step, kernel, images)
    assert told.flops > 0.8 * 2 * 2 * 16 * 16 * 9 * 64 * 64


def test_the_step_is_the_one_that_trains():
    config = light_config()
    layout = make_layout(jax.devices()[:8], fsdp=2)
    step, state, arrays, batch, notes = program.abstract_step(config, layout, 1000)
    assert batch["images"].shape == (32, 16, 16, 3) and not arrays
    after, metrics = jax.eval_shape(step, state, arrays, batch, notes)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss", "grad_norm", "stop"} <= set(metrics)
    kernel = state.params["backbone"]["stage4_block1"]["Conv_0"]["kernel"]
    split = kernel.sharding.shard_shape(kernel.shape)
    assert 2 * math.prod(split) == kernel.size  # fsdp is heeded


@pytest.mark.slow
def test_a_step_compiled_for_cpus_reduces_its_gradients():
    config = light_config()
    step, state, *others = program.abstract_step(config, make_layout(jax.devices()[:8]), 1000)
    told = program.compiled(step, state, *others)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    reduced = sum(c.bytes for c in told.moved if c.kind == "all-reduce")
    assert 4 * parameters <= reduced < 5 * parameters
    assert told.batch == 4 * 16 * 16 * 3 + 4 * 2 * 4 + 2 * 4  # 4 of 32 images, and the notices
    assert told.flops and told.temporaries


@pytest.mark.slow
def test_the_tpu_compiler_compiles_for_a_slice():
    pytest.importorskip("libtpu", reason="needs the TPU compiler, pip install 'moco-jax[plan]'")
    config = light_config()
    ((config, place, layout),) = plan.prepare(config, plan.places(["v5e:2x2"]))
    compiled = program.compiled(*program.abstract_step(config, layout, 1000))
    found = Forecast(place, compiled, config.batch_size, 4, 0.4, 1000)
    assert found.fits and found.flops
    assert {"all-reduce", "all-gather", "all-to-all"} <= set(found.moved)
    with pytest.raises(ValueError, match="refuses 'v5e:3x5'.*the first two even"):
        plan.prepare(config, plan.places(["v5e:3x5"]))


def test_every_gpu_is_described_to_its_compiler():
    assert set(nvidia.TARGETS) == {kind for kind, chip in CHIPS.items() if not chip.is_tpu}
    lines = nvidia._description("l4").splitlines()
    for line in (
        "  cuda_compute_capability { major: 8 minor: 9 feature_extension: NONE }",
        "  core_count: 58",
        "  memory_bandwidth: 300000000000",
        f"  device_memory_size: {24 * GIB}",
        "  shared_memory_per_block_optin: 101376",
        'device_description_str: "NVIDIA L4"',
    ):
        assert line in lines


def test_hosts_have_as_many_gpus_each():
    with pytest.raises(ValueError, match="9 GPUs can't be spread evenly over 2 hosts of 8"):
        nvidia.devices(Topology("h100", (9,)))


def test_gpus_are_compiled_for_by_their_compiler_where_there_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr(nvidia, "has_compiler", lambda: True)
    monkeypatch.setattr(nvidia, "devices", lambda place: asked.append(place) or jax.devices()[:2])
    [(config, place, layout)] = plan.prepare(tiny_config(), [Topology("h100", (2,))])
    assert asked == [place] == [Topology("h100", (2,))] and layout.devices == 2

    # That compiler doesn't tell operations: they are counted.
    alone = example(flops=None, platform="gpu").program
    monkeypatch.setattr(plan, "compiled", lambda *_: alone)
    monkeypatch.setattr(plan, "counted_flops", lambda *_: 7e12)
    monkeypatch.setattr(plan, "_IMAGES", types.SimpleNamespace(value=1000))
    monkeypatch.setattr(plan, "_MFU", types.SimpleNamespace(value=0.4))
    found = plan._forecast(config, place, layout)
    assert found.flops == 7e12
    assert "cuDNN's workspaces" in plan.notes(config, found)[0]


@pytest.mark.skipif(not nvidia.has_compiler(), reason="needs JAX for CUDA")
def test_the_compiler_for_gpus_tells_memory_and_collectives():
    config, length = ROOT / "configs" / "digits.py", "--config.steps=1"
    done = run_command(ROOT, "moco_jax.plan", f"--config={config}", length, "--topology=h100:8")
    assert done.returncode == 0, done.stderr
    assert "cuDNN's workspaces come on top" in done.stdout
    assert "all-reduce MB" in done.stdout and "all-to-all MB" in done.stdout
    assert "estimate from a compilation for CPUs" not in done.stdout


def test_operations_are_counted_before_compiling():
    layout = make_layout(jax.devices()[:2])
    whole = program.abstract_step(tiny_config(), layout, 1000)
    compiled = program.compiled(*whole)
    assert compiled.platform == "cpu"
    counted = program.counted_flops(tiny_config(), layout, 1000)
    assert counted == pytest.approx(compiled.flops, rel=0.2)
