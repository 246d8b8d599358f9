"""Two processes, also after a resume, draw the same views as one process."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from moco_jax.data.prepare import shards as conversion
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.source import Sources
from tests.conftest import devices_flags
from tests.ports import free_port
from tests.tiny import tiny_sources

DEVICES, STEPS, BATCH = 8, 4, 80  # 40 rows per process: tasks of 16, 16 and 8 images

# Writes the views of each step from `start` on: the rows on the devices of this process.
SCRIPT = """
    import sys
    import jax
    import numpy as np
    port, processes, process, start, megabytes, path, out = sys.argv[1:]
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    from moco_jax.data.augment import recipes, views
    from moco_jax.data.loading import loader
    from moco_jax.data.loading.order import ShuffledOrder
    from moco_jax.parallel.mesh import make_layout
    from moco_jax.data.sources.opening import open_sources
    from tests.tiny import tiny_config, tiny_sources

    config = tiny_config(data__canvas=16, data__resident_megabytes=int(megabytes))
    train = tiny_sources(200).train
    if path:
        train = open_sources(source="images", path=path, held_out=0.0, seed=0).train
    data = loader.load(train, config.data, make_layout())
    view = views.make_view(recipes.cifar(), 8, (0.0,) * 3, (1.0,) * 3)

    @jax.jit
    def draw(arrays, batch, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        return view(key, *data.images(arrays, batch))

    order = ShuffledOrder(seed=0, size=len(data), batch_size=80, steps=4)
    seen, rows = {}, []
    for step, batch in enumerate(data.batches(order, int(start)), start=int(start)):
        for shard in draw(data.arrays, batch, step).addressable_shards:
            seen[f"{step} {shard.index[0].start or 0}"] = np.asarray(shard.data)
        if isinstance(batch, dict):
            rows += [np.asarray(shard.data) for shard in batch["indices"].addressable_shards]
    np.savez(out, rows=rows, **seen)
"""


@pytest.fixture
def draw(repository, tmp_path):
    """Returns a function that runs the script in processes; it returns all views.

    The rows of the images that each process reads are appended to its argument `rows`.
    """

    def draw(processes, start=0, megabytes=0, path="", rows=None):
        port, flags = free_port(), devices_flags(DEVICES // processes)
        name = f"{processes}-{start}-{megabytes}-{bool(path)}"
        files = [tmp_path / f"{name}-{i}.npz" for i in range(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(SCRIPT)]
                + [str(x) for x in (port, processes, i, start, megabytes, path, file)],
                env=os.environ | {"PYTHONPATH": str(repository), "XLA_FLAGS": flags},
            )
            for i, file in enumerate(files)
        ]
        try:
            assert [process.wait(timeout=1200) for process in running] == [0] * processes
        finally:
            for process in running:
                process.kill()
        parts = []
        for file in files:
            with np.load(file) as data:
                parts.append({name: data[name] for name in data.files if name != "rows"})
                if rows is not None:
                    rows.append(data["rows"].tolist())
        assert not set.intersection(*map(set, parts)) or processes == 1
        return {name: views for part in parts for name, views in part.items()}

    return draw


@pytest.mark.parametrize(
    "megabytes",
    [pytest.param(0, id="streamed"), pytest.param(100, id="resident", marks=pytest.mark.slow)],
)
def test_two_processes_and_a_resume_draw_the_views_of_one_process(draw, megabytes):
    whole = draw(1, megabytes=megabytes)
    rows = BATCH // DEVICES
    places = {f"{step} {row}" for step in range(STEPS) for row in range(0, BATCH, rows)}
    assert set(whole) == places and whole["0 0"].shape == (rows, 8, 8, 3)
    assert not np.array_equal(whole["0 0"], whole["1 0"])
    two = draw(2, megabytes=megabytes)
    assert set(two) == places
    for place in places:
        np.testing.assert_array_equal(two[place], whole[place])
    resumed = draw(2, start=2, megabytes=megabytes)
    assert set(resumed) == {place for place in places if int(place.split()[0]) >= 2}
    for place, views in resumed.items():
        np.testing.assert_array_equal(views, whole[place])


def test_two_processes_over_shards_read_disjoint_parts_and_resume(draw, tmp_path):
    images = tiny_sources(200).train
    shards = tmp_path / "shards"
    conversion.convert(
        Sources(images, None), shards, Encoding(),
        images_per_shard=30, max_bad_fraction=0.0, threads=2,
    )  # fmt: skip
    for index in shards.glob("*.moco-index"):
        index.unlink()
    whole = draw(1, path=str(shards))
    inodes = {path.name: path.stat().st_ino for path in shards.glob("*.moco-index")}
    assert len(inodes) == 7
    rows = []
    two = draw(2, path=str(shards), rows=rows)
    assert {path.name: path.stat().st_ino for path in shards.glob("*.moco-index")} == inodes
    assert set(two) == set(whole)
    for place, views in two.items():
        np.testing.assert_array_equal(views, whole[place])
    half = BATCH * (len(images) // BATCH) // 2  # of the images of the batches of an epoch
    first, second = (set(np.concatenate(own).tolist()[:half]) for own in rows)
    assert len(first) == len(second) == half and not first & second
    resumed = draw(2, start=2, path=str(shards))
    assert set(resumed) == {place for place in whole if int(place.split()[0]) >= 2}
    for place, views in resumed.items():
        np.testing.assert_array_equal(views, whole[place])
