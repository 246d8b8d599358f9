"""Every program of every experiment compiles for a TPU and for a GPU, without the chips.

The networks have their full widths. A ResNet is whole, a ViT has at most 12 blocks. A device has
the images of the config's batch, at most 64.
"""

import functools
import importlib.util
import json
import os
import time

import filelock
import jax
import jax.numpy as jnp
import pytest

from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import compilers, nvidia, topology
from tests.compile import checks, experiments
from tests.compile.conftest import COLUMN
from tests.compile.programs import PROGRAMS

pytestmark = pytest.mark.compile

CHIPS = ("v5e:2x2", "h100:4")
# A TPU's compiler looks less for a fast program, which takes a fifth of the time; the collectives,
# the types and the reuse of memory are the same.
OPTIONS = {"tpu": {"exec_time_optimization_effort": -1.0}, "gpu": nvidia.COMPILER_OPTIONS}
CASES = [
    (name, kind, build)
    for task, names in experiments.by_task().items()
    for kind, build in PROGRAMS[task].items()
    for name in names
]


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


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """A folder of what was found in each program; all processes share it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    (folder / "programs").mkdir(exist_ok=True)
    return folder / "programs"


@pytest.mark.parametrize(
    ("name", "kind", "build"), CASES, ids=[f"{name}-{kind}" for name, kind, _ in CASES]
)
def test_it_compiles(place, known, record_property, name, kind, build):
    layout = make_layout(compilers.devices(place))
    program = build(name, layout)
    if program is None:
        pytest.skip("this experiment has no such program")
    lowered = program.function.trace(*program.arguments, **program.options).lower()
    file = known / f"{place.kind}_{checks.fingerprint(lowered.as_text())}.json"
    with filelock.FileLock(file.with_suffix(".lock")):  # another process may compile the same
        same = file.is_file()
        if not same:
            found = {"program": f"{name} {kind}", **compiled(lowered, program, place)}
            file.write_text(json.dumps(found))
    found = json.loads(file.read_text())
    sizes = [f"{found[key]:.2f}" for key in ("gigabytes", "temporaries")]
    of = [str(place), *sizes, f"{found['seconds']:.0f}", found["program"] if same else ""]
    record_property(COLUMN, [f"{name} {kind}", *of])
    assert found["faults"] == []


def compiled(lowered, program, place) -> dict:
    """Returns the faults of a program, its memory on a device and the CPU time to compile it."""
    begun = time.process_time()
    result = lowered.compile(OPTIONS["tpu" if place.chip.is_tpu else "gpu"])
    seconds, memory = time.process_time() - begun, result.memory_analysis()
    view = program.config.data.image_size if program.canvas else 0
    images = {"view": view, "canvas": program.canvas, "resident": program.resident}
    faults = [*checks.faults_of_text(result.as_text(), shuffled=program.shuffled, **images)]
    faults += checks.faults_of_memory(memory, program.state, place.chip)
    if program.canvas:
        wide = checks.float32_products(lowered.as_text(debug_info=True))
        faults += [f"a product in float32 of a bfloat16 run: {x}" for x in wide]
    return {
        "faults": faults,
        "gigabytes": checks.used_bytes(memory) / 1e9,
        "temporaries": memory.temp_size_in_bytes / 1e9,
        "seconds": seconds,
    }


def compile_small(place, function):
    """Returns the text of a program of images [64, 32, 32, 3] that lie on all devices."""
    layout = make_layout(compilers.devices(place))
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32, sharding=layout.sharded())
    lowered = jax.jit(functools.partial(function, layout)).lower(images)
    return lowered.compile(OPTIONS["tpu" if place.chip.is_tpu else "gpu"]).as_text()


def faults(text):
    return list(checks.faults_of_text(text, shuffled=16, view=32, canvas=64))


def test_a_call_of_the_host_is_found(place):
    def step(layout, images):
        jax.debug.callback(lambda x: None, images.sum())
        return images * 2

    if not place.chip.is_tpu:
        with pytest.raises(RuntimeError, match="gpu"):  # JAX lowers none without the GPU
            compile_small(place, step)
        return
    assert any("calls the host" in x for x in faults(compile_small(place, step)))


def test_a_move_of_all_images_is_found(place):
    gathered = lambda layout, images: layout.replicate(images) + 1  # noqa: E731
    assert any("moves images" in x for x in faults(compile_small(place, gathered)))
    assert faults(compile_small(place, lambda layout, images: images + 1)) == []
