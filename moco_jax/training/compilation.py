"""States and steps as compiled programs; the tasks supply the functions."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from moco_jax.parallel import notices
from moco_jax.parallel.mesh import Layout
from moco_jax.terminal import progress

# For programs that run once: XLA takes longer to optimise the random bits of every parameter than
# to draw them (a small ResNet on a CPU: 12 s, against 2 s).
FAST_COMPILE = {"xla_backend_optimization_level": 0}
# How long it takes to compile a training step, by platform: a small network and a ResNet-50.
_COMPILE_TIMES = {"cpu": "usually 10 to 60 s", "gpu": "usually 1 to 2 min"}
_COMPILE_TIMES["tpu"] = _COMPILE_TIMES["gpu"]


def abstract_state(init: Callable, shardings: Callable[[Any], Any], *arguments: Any) -> Any:
    """Returns the shapes, dtypes and shardings of `init(*arguments)` and computes nothing.

    Args:
      init: returns the state at step 0.
      shardings: returns the sharding of each array of a state.
      *arguments: of `init`.
    """
    with _no_collection():
        shapes = jax.eval_shape(init, *arguments)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(shapes),
    )


def create_state(init: Callable, target: Any, *arguments: Any, **options: Any) -> Any:
    """Returns `init(*arguments)`, compiled, with the shardings of its abstract state `target`."""
    with progress.phase("initialising the network"):
        return jit_init(init, target, **options)(*arguments)


def jit_init(init: Callable, target: Any, **options: Any) -> Any:
    """Returns `init`, jitted, with the shardings of its abstract state `target`."""
    shardings = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(init, out_shardings=shardings, **options)


def jit_step(step: Callable, layout: Layout) -> Any:
    """Returns (state, arrays, batch, notices) -> (state, metrics), jitted, the state donated.

    Args:
      step: (state, arrays, batch) -> (state, metrics).
      layout: the devices and shardings.
    """

    def step_with_notices(state, arrays, batch, notes):
        state, metrics = step(state, arrays, batch)
        return state, metrics | layout.replicate(notices.combined(notes))

    return layout.jit(step_with_notices, donate_argnums=0)


def compile_step(step: Any, *arguments: Any) -> jax.stages.Compiled:
    """Returns the jitted step compiled for these arguments.

    A thread compiles: it takes minutes for a large model, and the main thread could not handle a
    signal meanwhile.
    """
    result, ended = {}, threading.Event()

    def work():
        try:
            with _no_collection():
                lowered = step.lower(*arguments)
            result["step"] = lowered.compile()
        except BaseException as error:
            result["error"] = error
        finally:
            ended.set()

    threading.Thread(target=work, daemon=True, name="compile").start()
    expects = _COMPILE_TIMES.get(jax.default_backend(), "")
    with progress.phase("compiling the training step", expects):
        # A signal that ends `join` would mark the thread as ended.
        while not ended.wait(0.1):
            pass
    if "error" in result:
        raise result["error"]
    return result["step"]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses Python's garbage collection, which takes a quarter of the time of tracing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def step_memory(step: jax.stages.Compiled) -> dict[str, float]:
    """Returns `step_megabytes`, arguments and temporaries on a device; {} if it is unknown."""
    memory = step.memory_analysis()
    if memory is None:
        return {}
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs
    return {"step_megabytes": used / 2**20}
