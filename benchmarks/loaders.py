"""Measures reading shards by this package, by webdataset and by PyTorch's DataLoader.

    python -m moco_jax.data.prepare --from=imagenet_samples.tar --to=shards \
      --out=shards --images_per_shard=128
    python -m benchmarks.loaders --shards=shards --turns=5

It needs torch (>= 2.6) and webdataset (>= 1.0) beside this package. Each method has two workers,
one per core of the machine of the results, and gives batches of the same images. The methods take
turns:

  ours             threads read and decode the shards in one random order of all images; batches
                   uint8 [B, 512, 512, 3] on JAX's devices, as a step takes them. The step then
                   draws both views on the devices, which is not part of this.
  wds, canvas      webdataset shuffles the shards and a buffer of 1000 images, decodes by Pillow,
                   and makes images larger than 512 smaller by Pillow; the same batches in PyTorch's
                   memory; processes
  wds, views       the same, but with MoCo v2's two views on the host, float32 [B, 2, 3, 224, 224]
  folder, canvas   DataLoader over the same files in a folder, in one random order of all images;
                   Pillow decodes and makes smaller as above; processes. There is no reader of
                   shards in torch
  folder, views    the same, with MoCo v2's two views on the host: what its users run

Prints for each method the median, lowest and highest images/s of the turns, images for a CPU
second of all its processes, and the median of the ratios of `ours` to it.
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.input import reference_views
from moco_jax import config as config_lib
from moco_jax.data.loading import loader
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.opening import open_sources
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import make_layout

_CANVAS, _WORKERS = 512, 2
_WARM, _TAIL = 6, 6  # batches before the timed ones, and after them: workers read ahead
_IMAGE = "jpg;jpeg;png"
_TICKS = os.sysconf("SC_CLK_TCK")


def on_canvas(image: Image.Image) -> np.ndarray:
    """Returns uint8 [512, 512, 3] with the image in its corner, smaller if it does not fit."""
    image = image.convert("RGB")
    image.thumbnail((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)
    canvas = np.zeros((_CANVAS, _CANVAS, 3), np.uint8)
    canvas[: image.height, : image.width] = np.asarray(image)
    return canvas


def canvas_of_bytes(data: bytes) -> np.ndarray:
    return on_canvas(Image.open(io.BytesIO(data)))


def views_of_bytes(data: bytes) -> np.ndarray:
    return reference_views(data, int.from_bytes(os.urandom(4)))


class Files(Dataset):
    """The images of a folder, as torchvision's ImageFolder reads them."""

    def __init__(self, paths: list[str], change: Callable[[bytes], np.ndarray]):
        self._paths, self._change = paths, change

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with open(self._paths[index], "rb") as file:
            return self._change(file.read())


def first(sample: tuple) -> Any:
    return sample[0]


def of_folder(paths: list[str], change: Callable, batch: int, batches: int) -> DataLoader:
    sampler = RandomSampler(range(len(paths)), replacement=True, num_samples=batch * batches)
    return _loader(Files(paths, change), batch, sampler=sampler)


def of_shards(shards: list[str], views: bool, batch: int, batches: int) -> DataLoader:
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).repeat().shuffle(1000)
    if views:
        data = data.to_tuple(_IMAGE).map(first).map(views_of_bytes)
    else:
        data = data.decode("pil").to_tuple(_IMAGE).map(first).map(on_canvas)
    return _loader(data.with_epoch(batch * batches // _WORKERS), batch)


def _loader(data: Any, batch: int, **options: Any) -> DataLoader:
    return DataLoader(
        data, batch, num_workers=_WORKERS, persistent_workers=True,
        multiprocessing_context="spawn", **options,
    )  # fmt: skip


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and its children so far."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def rate(batches: Iterator, batch: int, timed: int) -> tuple[float, float]:
    """Returns images/s, and images for a CPU second, of batches that others follow."""
    for _ in itertools.islice(batches, _WARM):
        pass
    begun, used = time.perf_counter(), cpu_seconds()
    for _ in itertools.islice(batches, timed):
        pass
    images = timed * batch
    found = images / (time.perf_counter() - begun), images / (cpu_seconds() - used)
    for _ in itertools.islice(batches, _TAIL):
        pass
    return found


def files_of(source: Source, folder: pathlib.Path) -> list[str]:
    """Writes the images of a source to a folder; returns their paths."""
    paths = []
    for index in range(len(source)):
        paths.append(str(folder / f"{index:06}.jpg"))
        pathlib.Path(paths[-1]).write_bytes(source.read(index))
    return paths


def measure(shards: pathlib.Path, batch: int, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Returns the rates of each method and turn."""
    source = open_sources(source="images", path=str(shards), held_out=0.0, seed=0).train
    timed = len(source) // batch
    whole = _WARM + timed + _TAIL
    tars = sorted(map(str, shards.glob("*.tar")))
    config = config_lib.base().data
    config.resident_megabytes, config.threads, config.canvas = 0, _WORKERS, _CANVAS
    data = loader.load(source, config, make_layout())
    order = ShuffledOrder(0, len(source), batch, whole * (turns + 1))
    with tempfile.TemporaryDirectory() as made:
        paths = files_of(source, pathlib.Path(made))
        torch_side = {
            "wds, canvas": of_shards(tars, False, batch, whole),
            "wds, views": of_shards(tars, True, batch, whole),
            "folder, canvas": of_folder(paths, canvas_of_bytes, batch, whole),
            "folder, views": of_folder(paths, views_of_bytes, batch, whole),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *torch_side)}
        for turn in range(turns + 1):  # the first turn starts the processes
            with contextlib.closing(data.batches(order, turn * whole)) as batches:
                found = {"ours": rate(batches, batch, timed)}
            for name, method in torch_side.items():
                found[name] = rate(iter(method), batch, timed)
            for name, value in found.items():
                rates[name] += [value] if turn else []
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True, help="folder of shards that prepare wrote")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=50, help="even, as there are two workers")
    options = parser.parse_args()
    rates = measure(pathlib.Path(options.shards), options.batch_size, options.turns)
    versions = f"torch {torch.__version__}, webdataset {importlib.metadata.version('webdataset')}"
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{versions}, {_WORKERS} workers, {options.turns} turns, load {load}")
    print(f"{'':16}   images/s             for a CPU s   ours / it, wall and CPU")
    for name, values in rates.items():
        wall, cpu = (statistics.median(value[i] for value in values) for i in (0, 1))
        pairs = list(zip(rates["ours"], values, strict=True))
        ratios = [statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1)]
        low, high = min(values)[0], max(values)[0]
        print(
            f"{name:16} {wall:6.0f} ({low:.0f} to {high:.0f}) {cpu:12.0f} "
            f"{ratios[0]:12.2f} {ratios[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
