"""Compiles the pretraining step for a GPU or TPU that is not present, and counts what it runs.

Command: python -m benchmarks.step_program --config=configs/imagenet.py --chip=h200 \\
  --config.dtype=bfloat16 [--config.batch_size=256] [--largest=20]

`--chip=v5e` or another TPU needs libtpu; `h100` and `h200` need JAX for CUDA. Neither needs the
chip. Prints for each part of the step the number of kernels and fusions and the bytes that they
read and write (each operand and each result once, as if there were no cache), and for TPUs the
compiler's estimate of cycles. None of these is a time. An H200 reads at most 4.8 TB/s, and XLA
chooses the algorithm of a product by timing it on the chip.
"""

import time

import jax
from absl import flags

from benchmarks import program_parts
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import compilers, nvidia, program, topology
from moco_jax.plan.hardware import CHIPS
from moco_jax.plan.kernels import kernels
from moco_jax.pretraining import fit, validation
from moco_jax.terminal import command_line

_CHIP = flags.DEFINE_string("chip", "h200", "Such as v5e, v6e, h100, h200.")
_LARGEST = flags.DEFINE_integer("largest", 0, "Number of largest kernels to print.", lower_bound=0)
_IMAGES = flags.DEFINE_integer(
    "training_images", 1281167, "Images in the training set.", lower_bound=1
)
_TEXT = flags.DEFINE_string("text", None, "File to which the text of the program is written.")


def smallest_topology() -> topology.Topology:
    """Returns the smallest topology of the chip that --chip names.

    Raises:
      ValueError: the chip is unknown or JAX cannot compile for it.
      ModuleNotFoundError: the compiler for the chip is not installed.
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


def main() -> None:
    config = command_line.config("pretrain")
    place = smallest_topology()
    compilers.use_only_cpus([place])
    layout = make_layout(compilers.devices(place)[:1])
    config, lines = fit.fit(config, _IMAGES.value, (), 1)
    command_line.tell(lines)
    validation.check(config, 1)
    step, *arguments = program.abstract_step(config, layout, _IMAGES.value)
    lowered = step.lower(*arguments)
    begun = time.perf_counter()
    compiled = program.compiled(lowered, layout.mesh.devices.flat[0].platform)
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    if _TEXT.value:
        with open(_TEXT.value, "w") as file:
            file.write(text)
    run = kernels(text)
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
    command_line.run_main(main)
