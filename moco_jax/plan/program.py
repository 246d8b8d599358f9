"""The train step compiled for devices that aren't here, and what the compiler tells of it."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import make_dictionary
from moco_jax.contrastive.train_step import abstract_state, make_train_step
from moco_jax.data.loading.streamed import StreamedBatches
from moco_jax.models import convolution
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel import notices
from moco_jax.parallel.mesh import Layout
from moco_jax.plan.collectives import Collective, collectives
from moco_jax.pretraining.run import jit_step
from moco_jax.training.optimizers import make_optimizer, make_schedule

# What the TPU compiler says when a program takes too much; both totals include the arguments.
_USED = re.compile(
    r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT]?)\)? "
    r"(?:exceeds available HBM \(|of )([\d.]+[KMGT]?)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step, as one device has it.

    Attributes:
      state: bytes of the train state.
      batch: bytes of a batch's images, as they come from the host.
      temporaries: bytes of all that lives during the step only; None if it did not compile.
      code: bytes of the program itself.
      flops: floating-point operations, the augmentation's included; None if it did not compile,
        or the compiler doesn't count them.
      moved: the collectives.
      seconds: that compiling took.
      platform: compiled for: tpu, gpu, or cpu, which stands in for a GPU.
      refusal: why the compiler gave up, "" if it did not.
    """

    state: int
    batch: int
    temporaries: int | None
    code: int
    flops: float | None
    moved: list[Collective]
    seconds: float
    platform: str
    refusal: str = ""


def abstract_step(config: ConfigDict, layout: Layout, images: int) -> tuple[Any, ...]:
    """Returns the jitted step of a validated config, and its abstract arguments.

    They are state, arrays, batch and notices; data are taken to be streamed.

    Args:
      config: of the run.
      layout: where arrays lie.
      images: of the training set.
    """
    encoder = make_encoder(config)
    steps_per_epoch = max(1, images // config.batch_size)
    optimizer = make_optimizer(config, make_schedule(config, steps_per_epoch))
    dictionary = make_dictionary(config, layout, images)
    train_step = make_train_step(config, encoder, optimizer, dictionary, layout)
    step = jit_step(config, StreamedBatches(), train_step, layout)
    size, canvas, sharding = config.batch_size, config.data.canvas, layout.sharded()
    batch = {
        "images": jax.ShapeDtypeStruct((size, canvas, canvas, 3), jnp.uint8, sharding=sharding),
        "sizes": jax.ShapeDtypeStruct((size, 2), jnp.int32, sharding=sharding),
        "indices": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
        "readable": jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=sharding),
    }
    state = abstract_state(config, encoder, optimizer, dictionary, layout)
    return step, state, {}, batch, notices.abstract(layout)


def compiled(step: Any, state: Any, *others: Any) -> Program:
    """Returns what the compiler tells of a jitted step, be it that it doesn't fit.

    Args:
      step: jitted.
      state: its first argument, abstract.
      *others: its other arguments, abstract: what a step is given anew.
    """
    platform = jax.tree.leaves(state)[0].sharding.mesh.devices.flat[0].platform
    lowered = _lowered(step, state, *others)
    batch_bytes = _bytes_on_device(others)
    begun = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - begun
        return _refused(str(error), _bytes_on_device(state), batch_bytes, seconds, platform)
    seconds = time.perf_counter() - begun
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Program(
        state=memory.argument_size_in_bytes - batch_bytes,
        batch=batch_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=(cost or {}).get("flops"),
        moved=collectives(program.as_text()),
        seconds=seconds,
        platform=platform,
    )


def counted_flops(config: ConfigDict, layout: Layout, images: int) -> float:
    """Returns a device's floating-point operations in a step, before any compiler sees it.

    Args:
      config: of the run.
      layout: of CPUs, as many as there are devices.
      images: of the training set.
    """
    lowered = _lowered(*abstract_step(config, layout, images))
    return lowered.cost_analysis()["flops"] / layout.devices


def _lowered(step: Any, *arguments: Any) -> Any:
    with convolution.lax_only():  # where a CPU's program stands in for that of a GPU
        return step.lower(*arguments)


def _refused(message: str, state: int, batch: int, seconds: float, platform: str) -> Program:
    """Returns what a compiler's refusal for want of memory tells."""
    used = _USED.search(message)
    temporaries = None
    if used:
        temporaries = max(0, int(float(used[1]) * _UNITS[used[2]]) - state - batch)
    reason = f"needs {used[1]}{used[2]} of {used[3]}" if used else message.splitlines()[0]
    return Program(state, batch, temporaries, 0, None, [], seconds, platform, reason)


def _bytes_on_device(arrays: Any) -> int:
    """Returns the bytes that one device holds of abstract arrays."""
    total = 0
    for x in jax.tree.leaves(arrays):
        shape = x.sharding.shard_shape(x.shape)
        total += jax.ShapeDtypeStruct(shape, x.dtype).size * x.dtype.itemsize
    return total
