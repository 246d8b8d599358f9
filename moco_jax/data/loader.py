"""From a source to batches on the devices: kept in their memory whole, or streamed.

Either way a data set gives `batches(plan)`, small pytrees that a compiled step turns into pictures
with `pictures(arrays, batch)`; the step's code is the same for both.
"""

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from moco_jax.data.decode import BadImage, canvas_pad, decode
from moco_jax.data.sources import Source
from moco_jax.mesh import Layout

Plan = Sequence[np.ndarray]  # of i32[B] indices, one a step
Pictures = tuple[jax.Array, jax.Array]  # uint8 canvases [B, H, W, 3], true sizes i32[B, 2]

_PROBES = 64  # pictures whose sizes tell whether a source fits in device memory
_AHEAD = 2  # batches that are copied to the devices before they are needed


class DataSet(Protocol):
    """What the loop needs of a data set.

    Attributes:
      labels: i32[N], or None.
      arrays: pytree of device arrays that every step is given.
      bad: number of unreadable pictures found so far.
      description: for the log.
    """

    labels: np.ndarray | None
    arrays: Any
    bad: int
    description: str

    def __len__(self) -> int: ...

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Any]:
        """Yields a batch of device arrays for each of plan[start:]."""
        ...

    def pictures(self, arrays: Any, batch: Any) -> Pictures:
        """Returns, inside jit, the pictures of a batch."""
        ...


def load(source: Source, config: ConfigDict, layout: Layout) -> DataSet:
    """Returns the source's pictures, in device memory if they fit into `resident_megabytes`.

    Args:
      source: the pictures.
      config: the whole config's `data`.
      layout: where arrays lie.

    Raises:
      ValueError: if more than `max_bad_share` of the pictures can't be read.
    """
    bad = BadPictures(source, config.max_bad_share)
    limit = config.resident_megabytes * 2**20
    if _estimated_bytes(source, config.canvas) <= limit:
        decoded = _decode_all(source, config, bad)
        good = [i for i, image in enumerate(decoded) if image is not None]
        images, sizes = _pack([decoded[i] for i in good], limit)
        if images is not None:
            return ResidentData(source, np.asarray(good), images, sizes, layout)
    return StreamedData(source, config, bad, layout)


class BadPictures:
    """Names each unreadable picture once, and stops the run when there are too many."""

    def __init__(self, source: Source, max_share: float):
        self._source, self._max_share = source, max_share
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, index: int, error: Exception) -> None:
        """Records a picture.

        Raises:
          ValueError: when the bad are more than the configured share of all.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = str(error)
        name, total = self._source.names[index], len(self._source)
        logging.warning("skipped, not readable as a picture: %s (%s)", name, error)
        if len(self._reasons) > self._max_share * total:
            first = [f"  {self._source.names[i]}: {why}" for i, why in self._reasons.items()][:10]
            raise ValueError(
                f"{len(self._reasons)} of {total} pictures of {self._source.name} can't be read, "
                f"more than data.max_bad_share={self._max_share} allows; the first:\n"
                + "\n".join(first)
            )


class ResidentData:
    """A data set that lies decoded in every device's memory; a batch is its indices."""

    def __init__(
        self,
        source: Source,
        good: np.ndarray,
        images: np.ndarray,
        sizes: np.ndarray,
        layout: Layout,
    ):
        self.labels = None if source.labels is None else source.labels[good]
        self.bad = len(source) - len(good)
        self.description = f"{source.name}: {len(good)} pictures, {images.nbytes >> 20} MB resident"
        self.arrays = jax.device_put({"images": images, "sizes": sizes}, layout.replicated)
        self._layout = layout

    def __len__(self) -> int:
        return len(self.arrays["images"])

    def batches(self, plan: Plan, start: int = 0) -> Iterator[jax.Array]:
        steps = (plan[step] for step in range(start, len(plan)))
        return _copied_ahead(steps, self._layout)

    def pictures(self, arrays: Any, batch: jax.Array) -> Pictures:
        # Whole on every device, indexed by the device's own rows: nothing is communicated.
        return (
            self._layout.shard(jnp.take(arrays["images"], batch, axis=0)),
            self._layout.shard(jnp.take(arrays["sizes"], batch, axis=0)),
        )


class StreamedData:
    """A data set decoded by host threads as the steps need it; a batch is its pictures."""

    def __init__(self, source: Source, config: ConfigDict, bad: BadPictures, layout: Layout):
        self.labels, self.arrays = source.labels, {}
        self.description = f"{source.name}: {len(source)} pictures, streamed"
        self._source, self._canvas, self._bad, self._layout = source, config.canvas, bad, layout
        self._threads = _threads(config)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def bad(self) -> int:
        return len(self._bad)

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Any]:
        import grain  # here, since data in device memory need no loader

        decoded = grain.MapDataset.source(_Rows(plan)).map(self._read)
        # An element is a whole batch: the buffer counts batches, and bounds the memory.
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        return _copied_ahead(iter(decoded[start:].to_iter_dataset(options)), self._layout)

    def pictures(self, arrays: Any, batch: Any) -> Pictures:
        return batch["images"], batch["sizes"]

    def _read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        pictures = [self._read_one(int(i)) for i in indices]
        return {
            "images": np.stack([canvas_pad(p, self._canvas, self._canvas) for p in pictures]),
            "sizes": np.asarray([p.shape[:2] for p in pictures], np.int32),
        }

    def _read_one(self, index: int) -> np.ndarray:
        """Returns the picture, or the next readable one: the same one at every try."""
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            try:
                return decode(self._source.read(candidate), self._canvas)
            except (BadImage, OSError) as error:
                self._bad.add(candidate, error)
        raise ValueError(f"no picture of {self._source.name} can be read")


class _Rows:
    """A plan as Grain's random-access source."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step) -> np.ndarray:
        return self._plan[int(step)]


def _copied_ahead(batches: Iterator[Any], layout: Layout) -> Iterator[Any]:
    """Yields batches on the devices, the next already on their way."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(layout.put_batch(batch))
        if len(waiting) > _AHEAD:
            yield waiting.pop(0)
    yield from waiting


def _threads(config: ConfigDict) -> int:
    return config.threads or min(os.cpu_count() or 1, 16)


def _estimated_bytes(source: Source, canvas: int) -> int:
    """Returns the bytes of the decoded source, judged by a few pictures over its length."""
    height = width = 0
    for index in np.linspace(0, len(source) - 1, min(_PROBES, len(source))).astype(int):
        try:
            shape = decode(source.read(int(index)), canvas).shape
        except (BadImage, OSError):
            continue  # counted when it is read for good
        height, width = max(height, shape[0]), max(width, shape[1])
    return len(source) * height * width * 3


def _decode_all(
    source: Source, config: ConfigDict, bad: BadPictures
) -> list[np.ndarray | None]:
    def read(index: int) -> np.ndarray | None:
        try:
            return decode(source.read(index), config.canvas)
        except (BadImage, OSError) as error:
            bad.add(index, error)
            return None

    return _map_threads(read, len(source), _threads(config))


def _map_threads(function: Callable[[int], Any], size: int, threads: int) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        # In chunks: a future for each of 50,000 small pictures costs more than decoding them.
        chunks = [range(i, min(i + 256, size)) for i in range(0, size, 256)]
        done = pool.map(lambda chunk: [function(i) for i in chunk], chunks)
        return [result for chunk in done for result in chunk]


def _pack(images: list[np.ndarray], limit: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns canvases [N, H, W, 3] as large as the largest picture (None past the limit), sizes."""
    sizes = np.asarray([image.shape[:2] for image in images], np.int32)
    height, width = sizes.max(axis=0)
    if len(images) * height * width * 3 > limit:
        return None, sizes
    canvases = np.zeros((len(images), height, width, 3), np.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return canvases, sizes


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The data sets of a run; `test` is None without held-out labelled pictures."""

    train: DataSet
    test: DataSet | None
