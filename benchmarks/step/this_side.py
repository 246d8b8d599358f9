"""This project's side of `benchmarks.step`: the step of the shipped configs, on one device.

`benchmarks.step` starts it; `benchmarks.step_profile` uses its step.
"""

import functools
import importlib.util
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.step import worker
from moco_jax.contrastive.state import TrainState
from moco_jax.models.layers import convolution
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.hardware import CHIPS, kind_of
from moco_jax.plan.program import counting_layout
from moco_jax.pretraining.method import make_method

# File in configs/, variant, number of training images.
_CONFIGS = {
    "small": ("cifar10", "asymmetric", 50_000),
    "imagenet": ("imagenet", "v2", 1_281_167),
    "vit": ("imagenet_v3", "vit_s", 1_281_167),
    "cifar_vit": ("cifar10", "v3_vit", 50_000),
}


class Step(NamedTuple):
    """A compiled step and its arguments.

    Attributes:
      compiled: (state, *inputs) -> (state, metrics); it donates the state.
      state: at step 0.
      inputs: the views, and the indices of the images.
    """

    compiled: jax.stages.Compiled
    state: TrainState
    inputs: tuple


def make_step(problem: worker.Problem) -> Step:
    """Returns the step of a shipped config at the sizes of the problem, with random views."""
    config = _config(problem)
    layout = make_layout(jax.devices()[:1])
    method = make_method(config, layout, _CONFIGS[problem.name][2])
    state = method.create_state()
    shape = (problem.batch, config.data.image_size, config.data.image_size, 3)
    keys = jax.random.split(jax.random.key(1), 2)
    views = tuple(jax.random.normal(key, shape).astype(problem.dtype) for key in keys)
    inputs = (views, jnp.arange(problem.batch, dtype=jnp.int32))
    compiled = layout.jit(method.train_step(), donate_argnums=0).lower(state, *inputs).compile()
    return Step(compiled, state, inputs)


def main() -> None:
    problem = worker.problem_of(worker.problem_parser(__doc__).parse_args())
    begun = time.perf_counter()
    compiled, state, inputs = make_step(problem)
    compile_seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, metrics = compiled(state, *inputs)
        return float(metrics["loss"])

    steps(1)
    facts = {
        "library": f"jax {jax.__version__}",
        "device": jax.devices()[0].device_kind,
        "compile_seconds": compile_seconds,
        # A direction of the look-up has four forward passes: of the keys, of the queries, and two
        # for the gradient of the queries.
        "flops": 4 * (1 + _config(problem).symmetric) * _forward_flops(problem),
        "peak_flops": _peak_flops(),
        "temporaries_megabytes": memory.temp_size_in_bytes / 2**20 if memory else 0.0,
    }
    worker.serve(facts, steps, _closing)


def _config(problem: worker.Problem):
    file, variant, _ = _CONFIGS[problem.name]
    path = pathlib.Path(__file__).parents[2] / "configs" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.batch_size = problem.batch
    config.bn_groups = problem.bn_groups
    config.dtype = problem.dtype
    # The queue's length must be a multiple of the batch.
    config.queue_size = -(-config.queue_size // problem.batch) * problem.batch
    return config


def _forward_flops(problem: worker.Problem) -> float:
    """Returns the multiplications and additions of a forward pass of the encoder over a batch."""
    config = _config(problem)
    method = make_method(config, counting_layout(), _CONFIGS[problem.name][2])
    state, size = method.abstract_state(), config.data.image_size
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = jax.ShapeDtypeStruct((problem.batch, size, size, 3), problem.dtype)
    forward = functools.partial(method.encoder.apply, train=False)
    with convolution.lax_only():
        return jax.jit(forward).lower(variables, images).cost_analysis()["flops"]


def _peak_flops() -> float:
    """Returns the peak of the chip in FLOP/s; 0 if it is unknown, as for a CPU."""
    kind = kind_of(jax.devices()[0].device_kind)
    return CHIPS[kind].peak_flops if kind else 0.0


def _closing() -> dict:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {"peak_megabytes": peak / 2**20 if peak else worker.process_megabytes()}


if __name__ == "__main__":
    main()
