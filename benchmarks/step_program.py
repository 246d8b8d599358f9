"""The pretraining step judged by the program that XLA compiles for a chip that isn't here.

Command: python -m benchmarks.step_program --config=configs/imagenet.py --chip=h200 \\
  --config.dtype=bfloat16 [--config.batch_size=256] [--largest=20]

For `--chip=v5e` (or another TPU) it needs libtpu, for `h100` and `h200` JAX for CUDA; neither needs
the chip. It tells, by parts of the step, how many kernels run and what they read and write (each
operand and each result once, as if no cache held any), and for TPUs the compiler's own estimate of
cycles. None of it is a time: an H200 reads 4.8 TB/s at its best, and how a product is computed is
found by trying, which needs the chip.
"""

import time

import jax
from absl import app, flags

from benchmarks import program_parts
from moco_jax import command_line
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import compilers, nvidia, program, topology
from moco_jax.plan.hardware import CHIPS
from moco_jax.pretraining import validation

_CHIP = flags.DEFINE_string("chip", "h200", "Such as v5e, v6e, h100, h200.")
_LARGEST = flags.DEFINE_integer("largest", 0, "Tells so many largest kernels.", lower_bound=0)
_IMAGES = flags.DEFINE_integer("training_images", 1281167, "In the training set.", lower_bound=1)
_TEXT = flags.DEFINE_string("text", None, "File that the program's text is written to.")


def place() -> topology.Topology:
    """Returns the smallest topology of the chip that was asked for.

    Raises:
      ValueError: for a chip that is not known, or has no compiler here.
      ModuleNotFoundError: if its compiler is not installed.
    """
    name = _CHIP.value.strip().lower()
    if name not in CHIPS:
        raise ValueError(f"--chip={_CHIP.value} is unknown; known: {', '.join(CHIPS)}")
    found = topology.Topology(name, {0: (1,), 2: (2, 2), 3: (2, 2, 1)}[CHIPS[name].dimensions])
    if found.chip.is_tpu:
        topology.check_compiler()
    elif not nvidia.has_compiler():
        raise ModuleNotFoundError(f"compiling for GPUs needs JAX for CUDA: {nvidia.INSTALL}")
    return found


def main(_) -> None:
    config = command_line.config()
    try:
        asked = place()
        compilers.use_only_cpus([asked])
        layout = make_layout(compilers.devices(asked)[:1])
        validation.check(config, 1)
    except (ValueError, ModuleNotFoundError) as error:
        command_line.fail(str(error))
    step, *arguments = program.abstract_step(config, layout, _IMAGES.value)
    lowered = step.lower(*arguments)
    begun = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    if _TEXT.value:
        with open(_TEXT.value, "w") as file:
            file.write(text)
    run = program_parts.kernels(text)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    print(
        f"{config.name}: {config.model.name}, batch {config.batch_size}, {config.dtype}, for one "
        f"{_CHIP.value}, jax {jax.__version__}, compiled in {seconds:.0f} s"
    )
    print(f"temporaries {memory.temp_size_in_bytes / 1e6:.0f} MB")
    for name in ("flops", "bytes accessed"):
        if name in cost:
            print(f"{name}, the compiler's count: {cost[name] / 1e9:.1f} G")
    print(program_parts.table(run))
    for line in program_parts.largest(run, _LARGEST.value):
        print(line)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
