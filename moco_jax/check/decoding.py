"""Can this host decode images as fast as its devices train on them?"""

import io
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from moco_jax.check.findings import Finding, Verdict
from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import decoding_of

_SIZE = 500, 375  # of most images of ImageNet, which have 110 kB on average
_FILES, _TURNS = 32, 5
_SHORTEST = 0.4  # seconds of a turn


def check(config: ConfigDict, images_per_second: float) -> Finding:
    """Returns whether decoding keeps pace with training.

    Args:
      config: `data` of the whole config.
      images_per_second: that all devices of all processes train on.
    """
    threads, needed = loader.threads(config), images_per_second / jax.process_count()
    rate = _rate(_files(), config, threads)
    values = {"images_per_second": rate, "threads": threads, "needed": needed}
    text = (
        f"{rate:,.0f} JPEGs of {_SIZE[0]}x{_SIZE[1]} pixels/s with {threads} threads; the step "
        f"takes {needed:,.0f} images/s"
    )
    if rate >= needed:
        return Finding("decoding", Verdict.OK, text, values=values)
    advice = (
        f"a run on such images waits {1 - rate / needed:.0%} of the time: use a host with more "
        "vCPUs, or store smaller images; data that fit in device memory are decoded only once "
        "(data.resident_megabytes)"
    )
    return Finding("decoding", Verdict.SLOW, text, advice, values)


def _files() -> list[bytes]:
    """Returns JPEG files of random images, as large as those of ImageNet."""
    random, files = np.random.RandomState(0), []
    width, height = _SIZE
    for _ in range(_FILES):
        shapes = random.randint(0, 256, (6, 8, 3)).astype(np.uint8)
        image = np.asarray(Image.fromarray(shapes).resize(_SIZE, Image.Resampling.BICUBIC), int)
        image = image + random.normal(0, 12, (height, width, 1)).round().astype(int)
        file = io.BytesIO()
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=93)
        files.append(file.getvalue())
    return files


def _rate(files: list[bytes], config: ConfigDict, threads: int) -> float:
    """Returns the images/s that this many threads decode; the median of several turns."""
    how, rates = decoding_of(config), []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TURNS):
            begun, images = time.perf_counter(), 0
            while not images or time.perf_counter() - begun < _SHORTEST:
                images += len(list(pool.map(lambda file: decode(file, how), files * threads)))
            rates.append(images / (time.perf_counter() - begun))
    return statistics.median(rates)
