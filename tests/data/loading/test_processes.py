"""Two processes, also after a resume, draw the same views as one process."""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.conftest import devices_flags

DEVICES, STEPS, BATCH = 8, 4, 80  # 40 rows per process: tasks of 16, 16 and 8 images

# Writes the views of each step from `start` on: the rows on the devices of this process.
SCRIPT = """
    import sys
    import jax
    import numpy as np
    port, processes, process, start, megabytes, out = sys.argv[1:]
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    from moco_jax.data.augment import recipes, views
    from moco_jax.data.loading import loader
    from moco_jax.data.loading.order import ShuffledOrder
    from moco_jax.parallel.mesh import make_layout
    from tests.tiny import tiny_config, tiny_sources

    config = tiny_config(data__canvas=16, data__resident_megabytes=int(megabytes))
    data = loader.load(tiny_sources(200).train, config.data, make_layout())
    view = views.make_view(recipes.cifar(), 8, (0.0,) * 3, (1.0,) * 3)

    @jax.jit
    def draw(arrays, batch, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        return view(key, *data.images(arrays, batch))

    order = ShuffledOrder(seed=0, size=len(data), batch_size=80, steps=4)
    seen = {}
    for step, batch in enumerate(data.batches(order, int(start)), start=int(start)):
        for shard in draw(data.arrays, batch, step).addressable_shards:
            seen[f"{step} {shard.index[0].start or 0}"] = np.asarray(shard.data)
    np.savez(out, **seen)
"""


@pytest.fixture
def draw(repository, tmp_path):
    """Returns a function that runs the script in processes and returns all views."""

    def draw(processes, start=0, megabytes=0):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = devices_flags(DEVICES // processes)
        files = [tmp_path / f"{processes}-{start}-{megabytes}-{i}.npz" for i in range(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(SCRIPT)]
                + [str(x) for x in (port, processes, i, start, megabytes, file)],
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
                parts.append({name: data[name] for name in data.files})
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
