"""Every experiment compiles for a TPU and for a GPU, by their compilers, without the chips.

The networks keep their widths and lose their depth, so that a program compiles in half a minute.
"""

import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from moco_jax.models import resnet
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import compilers, nvidia, program, topology
from moco_jax.plan.collectives import collectives, excess_image_moves
from moco_jax.pretraining import fit
from tests.test_configs import EXPERIMENTS, get

pytestmark = pytest.mark.compile

CHIPS = ("v5e:2x2", "h100:4")
IMAGES = 10_000
BATCH = 64
_CALLBACK = re.compile(
    r'custom_call_target="[^"]*callback[^"]*"|is_host_transfer=true', re.IGNORECASE
)


@pytest.fixture(scope="module", params=CHIPS)
def place(request):
    """A topology whose compiler is installed."""
    found = topology.parse(request.param)
    if found.chip.is_tpu and not importlib.util.find_spec("libtpu"):
        pytest.skip("needs the TPU compiler: pip install 'moco-jax[plan]'")
    if not found.chip.is_tpu and not nvidia.has_compiler():
        pytest.skip(f"needs the GPU compiler: {nvidia.INSTALL}")
    if not found.chip.is_tpu and "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
        pytest.skip("needs JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1")
    return found


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Leaves one block to each stage of a ResNet."""
    for name, network in resnet.NETWORKS.items():
        sizes = tuple(1 for _ in network["stage_sizes"])
        monkeypatch.setitem(resnet.NETWORKS, name, network | {"stage_sizes": sizes})


def prepared(repository, names, devices):
    """Returns an experiment in bfloat16 with little depth and a batch of `BATCH`."""
    config = get(repository, *names)
    config.dtype = "bfloat16"
    config, _ = fit.fit(config, IMAGES, (), devices)
    config.batch_size = BATCH
    with config.unlocked():
        config.data.canvas = config.data.image_size + 32
        if config.model.name.startswith("vit"):
            config.model.depth = 1
            config.decoder.depth = min(1, config.decoder.depth)
        if config.dictionary == "queue":
            config.queue_size = 4 * BATCH * (1 + config.symmetric)
    return config


def compile_for(repository, place, names):
    """Returns the lowered and the compiled step of an experiment, its state and its config."""
    devices = compilers.devices(place)
    config = prepared(repository, names, len(devices))
    layout = make_layout(devices, **config.mesh)
    step, state, *others = program.abstract_step(config, layout, IMAGES)
    lowered = step.lower(state, *others)
    return lowered, program.compiled(lowered, devices[0].platform), state, config


@pytest.mark.parametrize("names", EXPERIMENTS, ids="-".join)
def test_the_step_compiles(repository, place, names):
    lowered, step, state, config = compile_for(repository, place, names)
    faults = problems(step.as_text(), config, place.devices)
    memory = step.memory_analysis()
    donated = program._bytes_on_device(state)
    if memory.alias_size_in_bytes < 0.95 * donated:
        faults.append(f"{memory.alias_size_in_bytes} of {donated} bytes of the state are reused")
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    if used > 0.75 * place.chip.memory_gib * 2**30:
        faults.append(f"it needs {used} bytes")
    wide = float32_products(lowered.as_text())
    if wide:
        faults.append(f"products in float32 of a bfloat16 run: {wide}")
    assert faults == []


def problems(text, config, devices) -> list[str]:
    """Returns what no program may have: calls of the host, float64, moves of images."""
    found = [f"calls the host: {match[0]}" for match in _CALLBACK.finditer(text)]
    if " f64[" in text or "(f64[" in text:
        found.append("has float64")
    sides = {"view": config.data.image_size, "canvas": config.data.canvas}
    moves = excess_image_moves(collectives(text), images=config.batch_size / devices, **sides)
    return found + [f"moves images: {move}" for move in moves]


def float32_products(text) -> list[str]:
    """Returns the convolutions of a lowered program whose operands are float32."""
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return [line[-120:] for line in lines if line.rpartition(":")[2].count("xf32>") > 1]


def compile_small(place, function):
    """Returns the text of a program of images [BATCH, 32, 32, 3] that lie on all devices."""
    layout = make_layout(compilers.devices(place))
    images = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32, sharding=layout.sharded())
    lowered = jax.jit(functools.partial(function, layout)).lower(images)
    return program.compiled(lowered, layout.mesh.devices.flat[0].platform).as_text()


SMALL = ConfigDict({"batch_size": BATCH, "data": {"image_size": 32, "canvas": 64}})


def test_a_call_of_the_host_is_found(place):
    def step(layout, images):
        jax.debug.callback(lambda x: None, images.sum())
        return images * 2

    if not place.chip.is_tpu:
        with pytest.raises(RuntimeError, match="gpu"):  # JAX lowers none without the GPU
            compile_small(place, step)
        return
    assert any("calls the host" in x for x in problems(compile_small(place, step), SMALL, 4))


def test_a_move_of_all_images_is_found(place):
    gathered = lambda layout, images: layout.replicate(images) + 1  # noqa: E731
    assert any("moves images" in x for x in problems(compile_small(place, gathered), SMALL, 4))
    text = compile_small(place, lambda layout, images: images + 1)
    assert problems(text, SMALL, 4) == []


def test_float64_and_float32_products_are_found():
    kernel, images = jnp.ones((3, 3, 3, 8)), jnp.ones((2, 8, 8, 3))
    numbers = ("NHWC", "HWIO", "NHWC")
    product = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
    )
    assert len(float32_products(product.lower(images, kernel).as_text())) == 1
    halves = images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert float32_products(product.lower(*halves).as_text()) == []
    with jax.enable_x64(True):
        text = jax.jit(lambda x: x * 2).lower(np.ones(3)).compile().as_text()
    assert "has float64" in problems(text, SMALL, 4)
