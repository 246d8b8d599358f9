"""Measures sources: decoding the same images from each format, and a large index of shards.

    python -m benchmarks.sources --path=imagenet_samples.tar --turns=5
    python -m benchmarks.sources --entries=10000000 --layout=labels

With --path, the images are copied into a folder, one with metadata, tars (plain and compressed),
zips (stored and deflated), shards, Parquet (plain and compressed), Arrow and a list. The formats
take turns: each reads and decodes all images in random orders, with one thread per core. A turn has
several passes: the first and the last requests of a bucket wait, and a run has few of them. Prints
for each format the median, lowest and highest images/s, the median ratio to the tar, and the median
ratio of CPU seconds.
With --latency, the tar and the shards are read from a bucket too: a server on this machine, which
waits that many seconds before each answer. It needs obstore. With --apart the server has a core
alone, as on another machine, and all formats are read on the other cores. "bucket, kept" is that
tar with data.cache_gigabytes: after the first turn, its images are on the disk. On a machine that
does other work too, more threads get more of it: --threads makes the formats comparable.

With --entries, that many images without contents are written: indices beside empty shards (with
labels or folders), or a list, Parquet or Arrow. A new process opens them as a run does. Prints the
seconds and the peak memory after each stage.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import Decoding
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.prepare import shards as conversion
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.opening import open_sources
from moco_jax.data.sources.shards import index_file
from moco_jax.data.sources.shards.samples import Labels, Samples
from moco_jax.data.sources.source import Source, fingerprint
from moco_jax.data.sources.storage.files import open_file
from tests.buckets.server import settings

_CHUNK = 16  # images of a task
_CLASSES = 1000
_LAYOUTS = ("labels", "folders", "list", "parquet", "arrow")  # of entries; the first are of shards


def open_train(path: os.PathLike | str, **options: Any) -> Source:
    return open_sources(source="images", path=str(path), held_out=0.0, seed=0, **options).train


def write_formats(path: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes the images of a source in each format; returns {format: path}."""
    source = open_train(path)
    names = [f"{i % 10}/{i:06}.jpg" for i in range(len(source))]
    found = {"tar": root / "x.tar", "folder": root / "folder"}
    for index, name in enumerate(names):
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(source.read(index))
    with tarfile.open(root / "x.tar", "w") as archive:
        for name in names:
            archive.add(root / "folder" / name, name)
    with tarfile.open(root / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in names:
            archive.add(root / "folder" / name, name)
    found |= {"tar.gz, in memory": root / "x.tar.gz", "metadata": root / "metadata"}
    found["metadata"].mkdir()
    rows = [f"{name.replace('/', '_')},{name[0]}" for name in names]
    (found["metadata"] / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    for name in names:
        os.link(root / "folder" / name, found["metadata"] / name.replace("/", "_"))
    for title, method in (("zip, stored", 0), ("zip, deflated", zipfile.ZIP_DEFLATED)):
        found[title] = root / f"{method}.zip"
        with zipfile.ZipFile(found[title], "w", method) as archive:
            for name in names:
                archive.write(root / "folder" / name, name)
    found["parquet, plain"] = root / "plain.parquet"
    found["parquet, snappy"] = root / "snappy.parquet"
    found["arrow"] = root / "x.arrow"
    images = [source.read(index) for index in range(len(source))]
    labels = [int(name[0]) for name in names]
    table = pa.table({"image": pa.array(images, pa.binary()), "path": names, "label": labels})
    write_plain(table, found["parquet, plain"])
    pq.write_table(table, found["parquet, snappy"], row_group_size=100, compression="snappy")
    with pa.ipc.new_file(str(found["arrow"]), table.schema) as writer:
        writer.write_table(table)
    found["list"] = root / "list.csv"
    lines = [f"folder/{name},{label}" for name, label in zip(names, labels, strict=True)]
    found["list"].write_text("\n".join(["path,label", *lines]))
    found["shards"] = root / "shards"
    conversion.convert(
        open_sources(source="images", path=str(root / "folder"), held_out=0.0, seed=0),
        found["shards"], Encoding(), images_per_shard=128, max_bad_fraction=0.0, threads=2,
    )  # fmt: skip
    return found


def write_plain(table: pa.Table, path: pathlib.Path) -> None:
    """Writes Parquet as `datasets` 4 does: images are neither compressed nor encoded."""
    pq.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False)


@contextlib.contextmanager
def in_bucket(root: pathlib.Path, latency: float, apart: bool) -> Iterator[dict[str, str]]:
    """Serves the tar and the shards below root from a bucket; yields {format: URL}."""
    readers = os.sched_getaffinity(0)
    if apart:
        cores = sorted(readers)
        os.sched_setaffinity(0, cores[-1:])  # the server inherits it
        readers = cores[:-1]
    with tempfile.TemporaryDirectory() as made:
        bucket = pathlib.Path(made)
        shutil.copy(root / "x.tar", bucket)
        shutil.copytree(root / "shards", bucket / "shards")
        command = [sys.executable, "-m", "tests.buckets.server", made, str(latency)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            os.sched_setaffinity(0, readers)
            os.environ.update(settings(server.stdout.readline().strip()))
            os.environ["XDG_CACHE_HOME"] = str(bucket / "cache")
            yield {"tar, bucket": "s3://b/x.tar", "shards, bucket": "gs://b/shards"}
            server.stdin.close()


def rate(source: Source, order: np.ndarray, threads: int) -> tuple[float, float]:
    """Returns images/s of reading and decoding the images as the loader does, and a CPU second."""
    threads = loader.threads(ConfigDict({"threads": threads}), source.remote)
    length = 4 if source.remote else _CHUNK

    def work(part: np.ndarray) -> None:
        for index in part:
            decode(source.read(int(index)), Decoding(512))

    with ThreadPoolExecutor(threads) as pool:
        begun, used = time.perf_counter(), time.process_time()
        list(pool.map(work, np.split(order, range(length, len(order), length))))
        return (
            len(order) / (time.perf_counter() - begun),
            len(order) / (time.process_time() - used),
        )


def compare(path: str, turns: int, passes: int, latency: float, threads: int, apart: bool) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        places: dict = write_formats(path, pathlib.Path(made))
        if latency:
            places |= stack.enter_context(in_bucket(pathlib.Path(made), latency, apart))
        sources = {form: open_train(place) for form, place in places.items()}
        if latency:
            place = places["tar, bucket"]
            sources["bucket, kept"] = open_train(place, cache_gigabytes=10)
        rates: dict[str, list[tuple[float, float]]] = {form: [] for form in sources}
        for turn in range(turns + 1):
            for form, source in sources.items():
                order = [rng.permutation(len(source)) for _ in range(passes)]
                value = rate(source, np.concatenate(order), threads)
                rates[form] += [value] if turn else []  # the first turn warms up
        load = os.getloadavg()[0]
        print(
            f"{path}: {len(sources['tar'])} images, {loader.cores()} cores, load {load:.0f}, "
            f"{turns} turns of {passes} passes, images/s"
        )
    for form, values in rates.items():
        pairs = list(zip(values, rates["tar"], strict=True))
        wall, used = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
        own = [value for value, _ in values]
        middle, low, high = statistics.median(own), min(own), max(own)
        print(f"{form:17} {middle:6.0f} ({low:.0f}..{high:.0f}) {wall:.2f}, for a CPU s {used:.2f}")


def write_indices(root: pathlib.Path, entries: int, shards: int, folders: bool) -> None:
    """Writes indices of this many images beside sparse files; the classes are labels or folders."""
    count = entries // shards
    size = 110_000
    between = "/" if folders else "_"
    classes = [str(c).encode() for c in range(_CLASSES)]
    table = np.frombuffer(b"".join(classes), np.uint8)
    lengths = np.array([len(c) for c in classes], np.uint32)
    codes = (np.arange(count) % _CLASSES).astype(np.int32)
    for number in range(shards):
        path = root / f"web-{number:06}.tar"
        path.touch()
        os.truncate(path, (count + 1) * size)
        own = [
            f"{path.name}/n{i % _CLASSES:08}{between}{number:04}{i:06}.jpg".encode()
            for i in range(count)
        ]
        samples = Samples(
            np.arange(count, dtype=np.int64) * size,
            np.full(count, size, np.uint32),
            np.frombuffer(b"".join(own), np.uint8),
            np.array([len(name) for name in own], np.uint32),
            {} if folders else {".cls": Labels(codes, table, lengths)}, {}, {}, [],
        )  # fmt: skip
        data = index_file.encoded(samples, index_file._identity(open_file(str(path))))
        path.with_name(path.name + index_file.ENDING).write_bytes(data)


def write_rows(root: pathlib.Path, entries: int, layout: str) -> pathlib.Path:
    """Writes a list, or a Parquet or Arrow file with a few bytes in place of each image."""
    path = root / {"list": "list.csv", "parquet": "x.parquet", "arrow": "x.arrow"}[layout]
    parts = range(0, entries, 100_000)
    path_of = lambda i: f"n{i % _CLASSES:08}/{i:010}.jpg"  # noqa: E731
    if layout == "list":
        with open(path, "w") as file:
            file.write("path,label\n")
            file.writelines(f"{path_of(i)},n{i % _CLASSES:08}\n" for i in range(entries))
        return path
    schema = pa.schema({"image": pa.binary(), "path": pa.string(), "label": pa.int64()})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    writer = (
        pq.ParquetWriter(path, schema, **options)
        if layout == "parquet"
        else pa.ipc.new_file(str(path), schema)
    )
    with writer:
        for start in parts:
            rows = range(start, min(start + 100_000, entries))
            columns = [[b"%010d" % i for i in rows], list(map(path_of, rows))]
            labels = [i % _CLASSES for i in rows]
            writer.write_table(pa.table([*columns, labels], schema=schema))
    return path


def measure_start(root: str) -> None:
    """Opens shards as a run does, and prints the seconds and memory of each stage."""
    begun, used, before = time.perf_counter(), time.process_time(), memory("VmHWM")

    def show(stage: str) -> None:
        nonlocal begun, used
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        begun, used = time.perf_counter(), time.process_time()
        peak = (memory("VmHWM") - before) >> 10
        print(f"{stage:34} {seconds:6.2f} s, CPU {cpu:6.2f} s, peak {peak:6} MB more", flush=True)

    empty = memory("RssAnon")
    sources = open_sources(source="images", path=root, held_out=0.1, seed=0)
    source = sources.train
    images = len(source) + (len(sources.test) if sources.test else 0)
    show(f"open {images:,} images")
    print(f"  {(memory('RssAnon') - empty) * 1024 / images:.0f} bytes an image stay", flush=True)
    fingerprint(source)
    show("fingerprint")
    order = ShuffledOrder(0, len(source), 256, 10**6)
    order[0]
    show("order of an epoch")
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(source), 10_000):
        with contextlib.suppress(FileNotFoundError):  # of a list
            source.read(int(index))
    show("10,000 reads of sparse bytes")
    print(json.dumps({"name": source.names[12_345], "classes": len(source.class_names)}))


def memory(kind: str) -> int:
    """Returns a value of this process in KiB (Linux).

    RssAnon is the memory without libraries. VmHWM is the peak; that of getrusage has the peak of
    the parent process too.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="", help="tar or folder of images")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--passes", type=int, default=5, help="over all images, in a turn")
    parser.add_argument("--threads", type=int, default=0, help="0 for those of the loader")
    parser.add_argument("--latency", type=float, default=0.0, help="of a bucket, in seconds")
    parser.add_argument("--apart", action="store_true", help="a core for the bucket's server")
    parser.add_argument("--entries", type=int, default=0, help="images of a synthetic index")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--layout", choices=_LAYOUTS, default="labels", help="of --entries")
    parser.add_argument("--start", default="", help="folder of shards that are opened")
    options = parser.parse_args()
    if options.start:
        measure_start(options.start)
    elif options.entries:
        with tempfile.TemporaryDirectory() as made:
            begun, place = time.perf_counter(), pathlib.Path(made)
            if options.layout in ("labels", "folders"):
                folders = options.layout == "folders"
                write_indices(place, options.entries, options.shards, folders)
            else:
                place = write_rows(place, options.entries, options.layout)
            print(f"written in {time.perf_counter() - begun:.1f} s", flush=True)
            command = [sys.executable, "-m", "benchmarks.sources", f"--start={place}"]
            subprocess.run(command, check=True)
    elif options.path:
        compare(
            options.path, options.turns, options.passes, options.latency, options.threads,
            options.apart,
        )  # fmt: skip
    else:
        parser.error("--path or --entries must be given")


if __name__ == "__main__":
    main()
