"""Measures the input pipeline of a run.

    python -m moco_jax.data.benchmark --config=configs/digits.py
    python -m moco_jax.data.benchmark --config=configs/folder.py:/path/to/images --steps=20

Times each stage alone (from bytes to views), all stages together, and real training steps. From
the decoding rate it computes which hosts can keep their accelerators busy.
"""

import collections
import contextlib
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from moco_jax.data.augment.views import make_views
from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, decoding_of
from moco_jax.data.loading.resident import ResidentBatches
from moco_jax.data.sources.opening import open_whole
from moco_jax.data.sources.source import Source, Sources
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.notices import Notices
from moco_jax.parallel.pipeline import pipelined
from moco_jax.plan import hardware
from moco_jax.plan.program import counted_flops, counting_layout
from moco_jax.pretraining import fit
from moco_jax.pretraining.run import PretrainRun, build
from moco_jax.terminal import command_line, progress
from moco_jax.training.compilation import compile_step

_STEPS = flags.DEFINE_integer("steps", 10, "Number of steps to time.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Shortest time to measure a stage.", lower_bound=0.0)
_MFU = flags.DEFINE_float(
    "mfu",
    0.15,
    "Fraction of the peak FLOP/s that steps reach; .15 is that of MoCo v2's ResNet-50 on an H100.",
    1e-3,
    1.0,
    allow_override=True,
)
_HOSTS = ("v4", "v5e", "v5p", "v6e", "a100-80", "h100")  # rows of the table
_IMAGES = 512  # held in memory, as bytes, while decoding is measured
_CHUNK = 16  # images per task
_AHEAD = 4  # first batches, not timed: they may be read ahead


class Stage(NamedTuple):
    """One line of the results."""

    name: str
    rate: float  # images/s
    what: str


def host_stages(source: Source, config: ConfigDict, seconds: float) -> Iterator[Stage]:
    """Yields the stages reading, decoding and batching, each measured alone.

    Raises:
      ValueError: if no image of the source can be read.
    """
    readers, decoders = (loader.threads(config.data, remote) for remote in (source.remote, False))
    drawn = np.random.default_rng(config.seed).permutation(len(source))[:_IMAGES]
    files = [data for i in drawn if (data := _bytes(source, int(i))) is not None]
    images = [image for data in files if (image := _decoded(data, config)) is not None]
    if not images:
        raise ValueError(f"none of the images drawn from {source.name} can be read")
    canvas = np.zeros((config.data.canvas, config.data.canvas, 3), np.uint8)

    def batch():
        for image in images:
            canvas[: image.shape[0], : image.shape[1]] = image

    def rate(work: Callable, items: list, threads: int) -> float:
        length = min(_CHUNK, -(-len(items) // threads))
        chunks = [items[i : i + length] for i in range(0, len(items), length)]
        each = lambda chunk: [work(item) for item in chunk]  # noqa: E731
        with ThreadPoolExecutor(threads) as pool:
            return _rate(lambda: list(pool.map(each, chunks)), len(items), seconds)

    reading = rate(lambda i: _bytes(source, int(i)), list(drawn), readers)
    yield Stage("reading", reading, f"bytes from the source, {readers} threads")
    decoding = rate(lambda data: _decoded(data, config), files, decoders)
    yield Stage("decoding", decoding, f"bytes in memory to images, {decoders} threads")
    batching = _rate(batch, len(images), seconds)
    yield Stage("batching", batching, f"onto canvases of {config.data.canvas} pixels, 1 thread")


def device_stages(run: PretrainRun, seconds: float) -> Iterator[Stage]:
    """Yields the stages copying (if the run copies images to the devices) and augmenting."""
    data, layout, size = run.config.data, run.layout, run.config.batch_size
    where = f"{layout.devices} x {layout.mesh.devices.flat[0].device_kind}"
    batch = _first_batch(run)
    if isinstance(batch, dict):
        canvases = np.zeros((len(layout.rows(size)), data.canvas, data.canvas, 3), np.uint8)
        rate = _rate(lambda: jax.block_until_ready(layout.put_batch(canvases)), size, seconds)
        yield Stage("copying", rate, f"to {where}, {rate * data.canvas**2 * 3 / 1e9:.2f} GB/s")
    draw = draw_views(run)
    work = lambda: jax.block_until_ready(draw(0, run.data.arrays, batch))  # noqa: E731
    work()  # compile before timing
    rate = _rate(work, size, seconds)
    yield Stage("augmenting", rate, f"{len(run.config.views)} views of {data.image_size}")


def draw_views(run: PretrainRun) -> Callable:
    """Returns a jitted function (step, arrays, batch) -> views."""
    views = make_views(run.config, run.layout)
    return jax.jit(lambda step, arrays, batch: views(step, *run.data.images(arrays, batch)))


def run_stages(run: PretrainRun, steps: int) -> Iterator[Stage]:
    """Yields the stages feeding (no step), step (no feeding) and training (both, as in a run)."""
    size = run.config.batch_size
    with contextlib.closing(run.data.batches(run.order)) as batches:
        collections.deque(itertools.islice(batches, _AHEAD), maxlen=0)
        begun = time.perf_counter()
        collections.deque(itertools.islice(batches, steps), maxlen=0)
        rate = steps * size / (time.perf_counter() - begun)
        yield Stage("feeding", rate, "reading to copying together")

    batch, notes = _first_batch(run), Notices(run.layout).put(stop=0, bad_images=0)
    state = run.create()
    step = compile_step(run.step, state, run.data.arrays, batch, notes)
    seconds, _, state = _train(run, step, state, itertools.repeat(batch, steps + _AHEAD), notes)
    yield Stage("step", steps * size / seconds, "views and MoCo, without waiting for data")
    with contextlib.closing(run.data.batches(run.order)) as batches:
        seconds, waited, _ = _train(run, step, state, batches, notes)
    yield Stage("training", steps * size / seconds, f"waiting for data {waited / seconds:.0%}")


def _train(run: PretrainRun, step, state, batches, notes) -> tuple[float, float, Any]:
    """Returns (seconds, seconds spent waiting for data, state), without the first steps."""
    waited, begun = 0.0, time.perf_counter()

    def dispatched() -> Iterator[Any]:
        nonlocal state, waited, begun
        asked = time.perf_counter()
        for number, batch in enumerate(batches):
            seconds = time.perf_counter() - asked
            if number == _AHEAD:
                jax.block_until_ready(state)
                waited, begun = 0.0, time.perf_counter()
            waited += seconds
            state, metrics = step(state, run.data.arrays, batch, notes)
            yield metrics
            asked = time.perf_counter()

    for metrics in pipelined(dispatched()):  # as in a run
        jax.block_until_ready(metrics)
    jax.block_until_ready(state)
    return time.perf_counter() - begun, waited, state


def flops_per_image(run: PretrainRun) -> float:
    """Returns the FLOPs of a step per image of the batch, including the augmentation.

    Raises:
      ValueError: if JAX may not use the CPU.
    """
    config = run.config.copy_and_resolve_references()
    if isinstance(run.data, ResidentBatches):  # they are in device memory, at their own size
        config.data.canvas = max(run.data.canvas)
    return counted_flops(config, counting_layout(), len(run.data)) / config.batch_size


def hosts_table(decoding_per_core: float, flops: float, mfu: float) -> str:
    """Returns a table with the images/s that hosts decode and that their accelerators train on."""
    lines = ["host                         vCPUs  decodes/s     chips train/s        ratio"]
    for name in _HOSTS:
        chip = hardware.CHIPS[name]
        decodes = decoding_per_core * chip.vcpus_per_host
        takes = mfu * chip.peak_flops * chip.chips_per_host / flops
        lines.append(
            f"{f'{chip.chips_per_host} x {name}, {chip.host}':28} {chip.vcpus_per_host:5} "
            f"{decodes:10,.0f} {takes:18,.0f} {decodes / takes:11.2g} x"
        )
    return "\n".join(lines)


def _measured(stages: Iterator[Stage]) -> Stage | None:
    """Returns the next stage, None after the last one."""
    with progress.phase("measuring the next stage"):
        return next(stages, None)


def _bytes(source: Source, index: int) -> bytes | np.ndarray | None:
    with contextlib.suppress(OSError):
        return source.read(index)


def _decoded(data, config: ConfigDict) -> np.ndarray | None:
    with contextlib.suppress(BadImage):
        return decode(data, decoding_of(config.data))


def _first_batch(run: PretrainRun) -> Any:
    with contextlib.closing(run.data.batches(run.order)) as batches:
        return next(batches)


def _rate(work: Callable[[], Any], images: int, seconds: float) -> float:
    """Returns the images/s of `work`, which handles `images`, over at least `seconds`."""
    begun, times = time.perf_counter(), 0
    while not times or time.perf_counter() - begun < seconds:
        work()
        times += 1
    return times * images / (time.perf_counter() - begun)


def main() -> None:
    config = command_line.config("pretrain")
    config.knn.every_epochs = 0.0  # do not load images for the kNN monitor
    config.epochs, config.steps = None, _STEPS.value + _AHEAD
    devices, data = jax.devices(), config.data
    config, sources, chosen = fit.prepared(config, len(devices), opened=open_whole)
    layout = make_layout(devices, **config.mesh)
    train = (sources or open_whole(config)).train
    command_line.tell(chosen)
    seconds, threads, rates = _SECONDS.value, loader.threads(data), {}

    def show(stages: Iterator[Stage]):
        while stage := _measured(stages):
            rates[stage.name] = stage.rate
            print(f"{stage.name:12} {stage.rate:10,.0f}  {stage.what}", flush=True)

    print("stage          images/s")
    show(host_stages(train, config, seconds))
    run = build(config, layout, Sources(train, None))
    show(device_stages(run, seconds))
    show(run_stages(run, _STEPS.value))
    print(run.data.describe(config.batch_size))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
    if not isinstance(_first_batch(run), dict):
        print("The images are in device memory: the host decodes nothing during training.")
        return
    flops, each = flops_per_image(run), rates["decoding"] / threads
    print(
        f"\nA step needs {flops / 1e9:.3g} GFLOP per image. If steps reach {_MFU.value:.0%} of the "
        f"peak FLOP/s,\nand a vCPU decodes {each:,.0f} images/s as a thread does here:"
    )
    print(hosts_table(each, flops, _MFU.value))


if __name__ == "__main__":
    command_line.run_main(main)
