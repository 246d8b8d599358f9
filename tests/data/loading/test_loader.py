"""Resident and streamed data sets give the same batches; unreadable images are counted."""

import io
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax import config as config_lib
from moco_jax.data.loading import order as order_lib
from moco_jax.data.loading.loader import load
from moco_jax.data.loading.order import ShuffledOrder, in_order, subset
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import make_layout

SIZES = [(6, 9), (10, 4), (8, 8), (3, 12)]


def encoded(height: int, width: int, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def source(bad: tuple[int, ...] = (), images: int = 20) -> Source:
    files = [encoded(*SIZES[i % 4], level=i) for i in range(images)]
    for i in bad:
        files[i] = b"no image"
    return Source(
        name="images",
        read=files.__getitem__,
        names=[f"{i}.png" for i in range(images)],
        labels=np.arange(images, dtype=np.int32) % 3,
        class_names=("a", "b", "c"),
    )


def data_config(**changes):
    config = config_lib.base().data
    config.update({"canvas": 16, "max_bad_fraction": 0.2} | changes)
    return config


@pytest.fixture(params=[0, 100], ids=["streamed", "resident"])
def megabytes(request):
    return request.param


def test_indices_of_a_batch_match_its_images(megabytes):
    data = load(source(bad=(3,)), data_config(resident_megabytes=megabytes), make_layout())
    [batch] = data.batches([np.array([3, 0, 1, 2, 5, 6, 7, 8], np.int32)])
    indices = np.asarray(data.indices(batch))
    images, _ = jax.device_get(jax.jit(data.images)(data.arrays, batch))
    levels = images[:, 0, 0, 0]
    assert levels[0] == 4 and 3 not in levels  # 4 stands in for 3, or has the index 3
    np.testing.assert_array_equal(data.labels[indices], levels % 3)


def read(data, plan, start=0):
    """Returns (sizes, levels) of the images in each batch; each image has a single level."""
    result = []
    for batch in data.batches(plan, start):
        images, sizes = jax.device_get(jax.jit(data.images)(data.arrays, batch))
        for image, (height, width) in zip(images, sizes, strict=True):
            assert (image[:height, :width] == image[0, 0]).all()
        result.append((sizes.tolist(), images[:, 0, 0, 0].tolist()))
    return result


def test_images_of_all_sizes_in_the_order_of_the_plan(megabytes):
    data = load(source(), data_config(resident_megabytes=megabytes), make_layout())
    plan = [np.arange(8, dtype=np.int32), np.array([3, 1, 19, 0, 0, 7, 2, 5], np.int32)]
    (first, second) = read(data, plan)
    assert first == ([list(SIZES[i % 4]) for i in range(8)], list(range(8)))
    assert second[1] == [3, 1, 19, 0, 0, 7, 2, 5]
    assert read(data, plan, start=1) == [second]
    assert len(data) == 20 and data.bad == 0


def test_bad_images_are_logged_once_skipped_and_counted(megabytes, caplog):
    data = load(source(bad=(2, 5)), data_config(resident_megabytes=megabytes), make_layout())
    plan = [np.array([0, 1, 2, 3, 4, 5, 6, 7], np.int32)] * 2
    levels = [batch[1] for batch in read(data, plan)]
    if megabytes:  # the data set does not have them
        assert levels[0] == [0, 1, 3, 4, 6, 7, 8, 9]
        assert data.labels.tolist() == [i % 3 for i in range(20) if i not in (2, 5)]
    else:  # the next image is the stand-in
        assert levels[0] == [0, 1, 3, 3, 4, 6, 6, 7]
    assert levels[0] == levels[1]
    assert data.bad == 2
    assert caplog.text.count("2.png") == 1 and caplog.text.count("5.png") == 1


def test_too_many_bad_images_stop_the_run(megabytes):
    config = data_config(resident_megabytes=megabytes, max_bad_fraction=0.05)
    with pytest.raises(ValueError) as error:
        data = load(source(bad=(2, 5)), config, make_layout())
        read(data, [np.arange(8, dtype=np.int32)])
    assert "2 of the 20 images of images can't be read" in str(error.value)
    assert "max_bad_fraction=0.05" in str(error.value) and ".png" in str(error.value)


def test_the_order_is_a_function_of_seed_and_step():
    order = ShuffledOrder(seed=1, size=10, batch_size=4, steps=6)
    assert order.steps_per_epoch == 2 and len(order) == 6
    epochs = [np.concatenate([order[2 * e], order[2 * e + 1]]) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 8 and set(epoch.tolist()) <= set(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    again = ShuffledOrder(seed=1, size=10, batch_size=4, steps=100)
    np.testing.assert_array_equal(order[5], again[5])
    assert ShuffledOrder(seed=2, size=10, batch_size=4, steps=6)[0].tolist() != order[0].tolist()


def test_in_order_and_subset():
    assert [b.tolist() for b in in_order(np.arange(5), 4)] == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert subset(5, 0, seed=0).tolist() == [0, 1, 2, 3, 4]
    some = subset(1000, 10, seed=0)
    assert len(set(some.tolist())) == 10 and some.tolist() == sorted(some.tolist())
    np.testing.assert_array_equal(some, subset(1000, 10, seed=0))


def test_threads_share_the_order_of_an_epoch():
    order_lib._permutation.cache_clear()
    order = ShuffledOrder(seed=3, size=3_000_000, batch_size=4, steps=8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(order.__getitem__, range(8)))
    assert order_lib._permutation.cache_info().misses == 1
    order_lib._permutation.cache_clear()
