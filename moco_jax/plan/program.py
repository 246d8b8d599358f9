"""Compiles the train step for target devices; returns its memory, FLOPs and collectives."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.data.loading.streamed import StreamedBatches
from moco_jax.models.layers import convolution
from moco_jax.parallel import notices
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.plan import nvidia
from moco_jax.plan.collectives import Collective, collectives
from moco_jax.plan.kernels import cycles, kernels, moved
from moco_jax.pretraining.method import make_method
from moco_jax.pretraining.run import make_run_step

# The TPU compiler's error for a program that needs too much memory; both totals include the
# arguments.
_OUT_OF_MEMORY = re.compile(
    r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT]?)\)? "
    r"(?:exceeds available HBM \(|of )([\d.]+[KMGT]?)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step; all numbers are those of one device."""

    state_bytes: int
    batch_bytes: int  # of a batch as it comes from the host
    temporary_bytes: float  # of all arrays that exist during the step only; NaN if unknown
    code_bytes: int
    flops: float  # floating-point operations, with augmentation; NaN if unknown
    bytes_moved: float  # operands and results of all kernels, without a cache; NaN if unknown
    cycles: int  # the TPU compiler's estimate for all kernels; 0 if there is none
    collectives: list[Collective]  # in the order of the program
    compile_seconds: float
    platform: str  # 'tpu', 'gpu', or 'cpu' if the GPU compiler is not installed
    refusal: str = ""  # why the compiler refused the step; "" if it compiled


def abstract_step(config: ConfigDict, layout: Layout, images: int) -> tuple[Any, ...]:
    """Returns (step, state, arrays, batch, notices): the jitted step and its abstract arguments.

    The data set, of `images` images, is streamed.
    """
    method = make_method(config, layout, images)
    step = make_run_step(config, StreamedBatches(), method.train_step(), layout)
    size, canvas, sharding = config.batch_size, config.data.canvas, layout.sharded()
    batch = {
        "images": jax.ShapeDtypeStruct((size, canvas, canvas, 3), jnp.uint8, sharding=sharding),
        "sizes": jax.ShapeDtypeStruct((size, 2), jnp.int32, sharding=sharding),
        "indices": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
        "readable": jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=sharding),
    }
    return step, method.abstract_state(), {}, batch, notices.abstract(layout)


def compile_program(step: Any, state: Any, *others: Any) -> Program:
    """Returns the program of a jitted step, with `refusal` set if it needs too much memory.

    The arguments of the step are abstract; each step gets new `others`.
    """
    platform = jax.tree.leaves(state)[0].sharding.mesh.devices.flat[0].platform
    lowered = _lowered(step, state, *others)
    batch_bytes = _bytes_on_device(others)
    begun = time.perf_counter()
    try:
        program = compiled(lowered, platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - begun
        return _refused_program(str(error), _bytes_on_device(state), batch_bytes, seconds, platform)
    return described(program, batch_bytes, time.perf_counter() - begun, platform)


def described(compiled: Any, batch_bytes: int, seconds: float, platform: str) -> Program:
    """Returns the facts about a compiled step.

    Args:
      compiled: the step; its arguments are the state and a batch.
      batch_bytes: of the batch on a device.
      seconds: that it took to compile it.
      platform: that it is compiled for: 'tpu', 'gpu' or 'cpu'.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    run = kernels(text)
    return Program(
        state_bytes=memory.argument_size_in_bytes - batch_bytes,
        batch_bytes=batch_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost.get("flops", math.nan),
        # A program for CPUs stands for one of another platform, with other kernels.
        bytes_moved=math.nan if platform == "cpu" else sum(map(moved, run)),
        cycles=sum(map(cycles, run)),
        collectives=collectives(text),
        compile_seconds=seconds,
        platform=platform,
    )


def compiled(lowered: Any, platform: str) -> Any:
    """Returns a lowered step compiled for a platform: 'tpu', 'gpu' or 'cpu'."""
    return lowered.compile(nvidia.COMPILER_OPTIONS if platform == "gpu" else None)


def counting_layout() -> Layout:
    """Returns one CPU device: JAX counts the operations of lowered programs for CPUs only.

    Raises:
      ValueError: if JAX may not use the CPU.
    """
    try:
        return make_layout(jax.devices("cpu")[:1])
    except RuntimeError as error:
        raise ValueError(f"FLOPs are counted on a CPU; add cpu to JAX_PLATFORMS: {error}") from None


def counted_flops(config: ConfigDict, layout: Layout, images: int) -> float:
    """Returns the floating-point operations of a step per device, counted before compilation.

    `layout` has CPU devices, as many as the topology has devices for the part of each of these.
    """
    if config.microbatches > 1:
        # XLA counts a loop as one run of its body. Parts that are encoded again for the gradient
        # have about the operations of blocks that are computed again.
        config = config.copy_and_resolve_references()
        config.microbatches, config.remat = 1, True
    lowered = _lowered(*abstract_step(config, layout, images))
    return lowered.cost_analysis()["flops"] / layout.devices


def _lowered(step: Any, *arguments: Any) -> Any:
    with convolution.lax_only():  # a program for CPUs must have the operations of one for GPUs
        return step.lower(*arguments)


def _refused_program(
    message: str, state: int, batch: int, seconds: float, platform: str
) -> Program:
    """Returns the program of a step that needs too much memory, by the compiler's message."""
    temporaries, reason = math.nan, message.splitlines()[0]
    if used := _OUT_OF_MEMORY.search(message):
        temporaries = max(0, int(float(used[1]) * _UNITS[used[2]]) - state - batch)
        reason = f"needs {used[1]}{used[2]} of {used[3]}"
    unknown = math.nan
    return Program(state, batch, temporaries, 0, unknown, unknown, 0, [], seconds, platform, reason)


def _bytes_on_device(arrays: Any) -> int:
    """Returns the bytes of a pytree of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )
