"""Measures how many images a second a host reads, against other ways to feed a GPU.

Command: python -m benchmarks.input --path=imagenet_samples.tar

Five methods take turns, each with one worker per core:
  reference  MoCo v2's two views on the host, as torchvision computes them on Pillow images
             (random resized crop, jitter, grey, blur, flip), as normalised float32
             [2, 3, 224, 224]; processes
  bare       simplejpeg decodes the bytes in memory, nothing else; threads
  pillow     simplejpeg, then Pillow crops and resizes both views, antialiased, to
             uint8 [2, 224, 224, 3]; threads; colours and blur are left to the accelerator
  opencv     the same with OpenCV: linear after a Gaussian that prevents aliasing; only if OpenCV is
             installed
  ours       the batches of this package from the archive to JAX's devices; threads

Prints for each method the median, lowest and highest images/s over the turns. Then it prints the
median ratio of `ours` to each other method, and the peak memory after each turn.
"""

import argparse
import contextlib
import io
import itertools
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

try:
    import cv2
except ImportError:
    cv2 = None

from moco_jax import config as config_lib
from moco_jax.data.loading import loader
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources import opening
from moco_jax.parallel.mesh import make_layout

_SIDE = 224
_MEAN = np.array(config_lib.IMAGENET_MEAN, np.float32)[:, None, None]
_STD = np.array(config_lib.IMAGENET_STD, np.float32)[:, None, None]


def reference_views(data: bytes, seed: int) -> np.ndarray:
    """Returns f32[2, 3, 224, 224]: two views by MoCo v2's recipe."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.stack([_reference_view(image, rng) for _ in range(2)])


def _reference_view(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    left, top, width, height = _window(image, rng)
    view = image.crop((left, top, left + width, top + height))
    view = view.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    if rng.random() < 0.8:
        view = _jitter(view, rng)
    if rng.random() < 0.2:
        view = view.convert("L").convert("RGB")
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    pixels = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1)).astype(np.float32) / 255
    return (pixels - _MEAN) / _STD


def _window(image: Image.Image, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = image.width * image.height * rng.uniform(0.2, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(rng.integers(0, image.width - width + 1))
            return left, int(rng.integers(0, image.height - height + 1)), width, height
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side, side


def _jitter(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for turn in rng.permutation(4):
        if turn < 3:
            view = kinds[turn](view).enhance(rng.uniform(0.6, 1.4))
        else:
            hue, saturation, value = view.convert("HSV").split()
            turned = np.asarray(hue) + np.int32(rng.uniform(-0.1, 0.1) * 255).astype(np.uint8)
            view = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    return view


def _reference_chunk(chunk: list[bytes]) -> None:
    for seed, data in enumerate(chunk):
        reference_views(data, seed)


def _bare_chunk(chunk: list[bytes]) -> None:
    for data in chunk:
        simplejpeg.decode_jpeg(data)


def _pillow_chunk(chunk: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    for data in chunk:
        image = Image.fromarray(_rgb(data))
        for _ in range(2):
            left, top, width, height = _window(image, rng)
            box = (left, top, left + width, top + height)
            np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box))


def _opencv_chunk(chunk: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    for data in chunk:
        pixels = _rgb(data)
        image = Image.fromarray(pixels)  # no copy; only its size is used
        for _ in range(2):
            left, top, width, height = _window(image, rng)
            crop = pixels[top : top + height, left : left + width]
            sigmas = [max(0.0, (side / _SIDE - 1) / 2) for side in (width, height)]
            if max(sigmas) > 0:
                crop = cv2.GaussianBlur(crop, (0, 0), max(sigmas[0], 0.01), max(sigmas[1], 0.01))
            cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)


def _rgb(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB")


def _rate(pool, work: Callable, files: list[bytes]) -> float:
    chunks = [files[i : i + 16] for i in range(0, len(files), 16)]
    begun = time.perf_counter()
    list(pool.map(work, chunks))
    return len(files) / (time.perf_counter() - begun)


def _our_rate(data: loader.DataSet, order: ShuffledOrder, images: int, first: int) -> float:
    """Returns images/s of whole batches, without the first few, which are prefetched."""
    warm, timed = 6, images // order.batch_size
    with contextlib.closing(data.batches(order, first)) as batches:
        for _ in itertools.islice(batches, warm):
            pass
        begun = time.perf_counter()
        for _ in itertools.islice(batches, timed):
            pass
        return timed * order.batch_size / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", required=True, help="tar or folder of JPEGs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=50)
    options = parser.parse_args()

    if cv2 is not None:
        cv2.setNumThreads(1)  # the thread pool already uses all cores
    source = opening.open_sources(source="images", path=options.path, held_out=0.0, seed=0).train
    jpegs = [data for data in map(source.read, range(len(source))) if data[:2] == b"\xff\xd8"]
    config = config_lib.base().data
    config.resident_megabytes = 0
    cores = len(os.sched_getaffinity(0))
    memory = []
    spawn = multiprocessing.get_context("spawn")  # a fork would lose the threads of JAX
    with (
        ProcessPoolExecutor(cores, mp_context=spawn) as processes,
        ThreadPoolExecutor(cores) as threads,
    ):
        list(processes.map(_reference_chunk, [jpegs[:16]] * (4 * cores)))  # starts all workers
        data = loader.load(source, config, make_layout())
        steps = len(source) // options.batch_size
        order = ShuffledOrder(0, len(source), options.batch_size, steps * (options.turns + 2))
        methods = {
            "reference": lambda _: _rate(processes, _reference_chunk, jpegs),
            "bare": lambda _: _rate(threads, _bare_chunk, jpegs),
            "pillow": lambda _: _rate(threads, _pillow_chunk, jpegs),
            "opencv": lambda _: _rate(threads, _opencv_chunk, jpegs),
            "ours": lambda turn: _our_rate(data, order, len(source), turn * steps),
        }
        if cv2 is None:
            del methods["opencv"]
        rates: dict[str, list[float]] = {name: [] for name in methods}
        for turn in range(options.turns):
            for name, method in methods.items():
                rates[name].append(method(turn))
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)

    print(f"{source.name}: {len(jpegs)} JPEGs, {cores} cores, {options.turns} turns, images/s")
    for name, values in rates.items():
        print(f"{name:10} {statistics.median(values):7.0f}  ({min(values):.0f}..{max(values):.0f})")
    for name in [name for name in rates if name != "ours"]:
        pairs = zip(rates["ours"], rates[name], strict=True)
        print(f"ratio to {name} {statistics.median(a / b for a, b in pairs):.2f}")
    print(f"peak memory after each turn, MB: {' '.join(map(str, memory))}")


if __name__ == "__main__":
    main()
