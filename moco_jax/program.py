"""The train step compiled for devices that aren't here, and what the compiler tells of it."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.collectives import Collective, collectives
from moco_jax.mesh import Layout
from moco_jax.models.encoder import make_encoder
from moco_jax.optimizers import make_optimizer, make_schedule
from moco_jax.pretrain import compile_step
from moco_jax.train_step import TrainState, abstract_state, make_train_step

_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step, as one device has it.

    Attributes:
      state: bytes of the train state.
      batch: bytes of a batch's pictures, as they come from the host.
      temporaries: bytes of all that lives during the step only; None if it did not compile.
      code: bytes of the program itself.
      flops: floating-point operations, the augmentation's included; None if it did not compile.
      moved: the collectives.
      seconds: that compiling took.
      refusal: why the compiler gave up, "" if it did not.
    """

    state: int
    batch: int
    temporaries: int | None
    code: int
    flops: float | None
    moved: list[Collective]
    seconds: float
    refusal: str = ""


class _Streamed:
    """Stands for a streamed data set: a batch is its pictures."""

    def pictures(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        return batch["images"], batch["sizes"]


def abstract_step(
    config: ConfigDict, layout: Layout, pictures: int
) -> tuple[Any, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the jitted step of a validated config, and its abstract state and batch."""
    encoder = make_encoder(config)
    steps_per_epoch = max(1, pictures // config.batch_size)
    optimizer = make_optimizer(config, make_schedule(config, steps_per_epoch))
    train_step = make_train_step(config, encoder, optimizer, layout)
    data: Any = _Streamed()
    step = compile_step(config, data, train_step, layout)
    size, canvas = config.batch_size, config.data.canvas
    batch = {
        "images": jax.ShapeDtypeStruct((size, canvas, canvas, 3), jnp.uint8),
        "sizes": jax.ShapeDtypeStruct((size, 2), jnp.int32),
    }
    batch = {k: x.update(sharding=layout.sharded()) for k, x in batch.items()}
    return step, abstract_state(config, encoder, optimizer, layout), batch


def compiled(config: ConfigDict, layout: Layout, pictures: int) -> Program:
    """Returns what the compiler tells of the step, be it that it doesn't fit."""
    step, state, batch = abstract_step(config, layout, pictures)
    lowered = step.lower(state, {}, batch)
    batch_bytes = _bytes_on_device(batch)
    begun = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - begun
        return _refused(str(error), _bytes_on_device(state), batch_bytes, seconds)
    seconds = time.perf_counter() - begun
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Program(
        state=memory.argument_size_in_bytes - batch_bytes,
        batch=batch_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        moved=collectives(program.as_text()),
        seconds=seconds,
    )


def _refused(message: str, state: int, batch: int, seconds: float) -> Program:
    """Returns what a compiler's refusal for want of memory tells."""
    used = _USED.search(message)
    temporaries = None
    if used:
        temporaries = max(0, int(float(used[1]) * _UNITS[used[2]]) - state - batch)
    reason = used[0] if used else message.splitlines()[0]
    return Program(state, batch, temporaries, 0, None, [], seconds, reason)


def _bytes_on_device(arrays: Any) -> int:
    """Returns the bytes that one device holds of abstract arrays."""
    total = 0
    for x in jax.tree.leaves(arrays):
        shape = x.sharding.shard_shape(x.shape)
        total += jax.ShapeDtypeStruct(shape, x.dtype).size * x.dtype.itemsize
    return total
