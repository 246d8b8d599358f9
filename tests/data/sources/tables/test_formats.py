"""Every format gives the images, the order, the labels and the losses of a folder."""

import contextlib

import jax
import numpy as np
import pytest

from moco_jax.data.loading import loader
from moco_jax.data.sources.source import Source, fingerprint
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.notices import Notices
from moco_jax.pretraining.run import build
from tests.data.sources.stores import open_images
from tests.data.sources.tables import layouts
from tests.tiny import tiny_config


def seen(source: Source) -> list[tuple[bytes, str]]:
    """Returns the bytes and the class of all images, in order."""
    assert source.labels is not None
    images = [source.read(index) for index in range(len(source))]
    return [(x, source.class_names[y]) for x, y in zip(images, source.labels, strict=True)]


@pytest.mark.parametrize("name", layouts.FORMATS)
def test_a_table_is_the_folder_of_its_images(tmp_path, name):
    found = layouts.items()
    folder = open_images(layouts.folder(tmp_path / "folder", found))
    other = open_images(layouts.FORMATS[name](tmp_path, found))
    for own, expected in ((other.train, folder.train), (other.test, folder.test)):
        assert seen(own) == seen(expected)
        assert own.class_names == expected.class_names
        assert own.labels.tolist() == expected.labels.tolist()
        assert own.labels.dtype == np.int32
    if name != "metadata":  # it has names without folders
        assert fingerprint(other.train) == fingerprint(folder.train)


def test_the_losses_of_five_steps_are_equal_to_the_bit(tmp_path):
    found = layouts.items(count=8)
    config = tiny_config(
        data__source="images",
        data__path=str(layouts.folder(tmp_path / "folder", found)),
        steps=5,
        batch_size=16,
        bn_groups=1,
        queue_size=32,
        data__resident_megabytes=0,
        knn__every_epochs=0.0,
    )
    layout = make_layout(jax.devices()[:1])
    run = build(config, layout)
    notes = Notices(layout).put(stop=0, bad_images=0)

    def losses(data: loader.DataSet) -> list[float]:
        state, found = run.create(), []
        with contextlib.closing(data.batches(run.order)) as batches:
            for batch in batches:
                state, metrics = run.step(state, data.arrays, batch, notes)
                found.append(float(metrics["loss"]))
        return found

    expected = losses(run.data)
    assert len(set(expected)) == 5
    for write in layouts.FORMATS.values():
        train = open_images(write(tmp_path, found)).train
        assert losses(loader.load(train, config.data, layout)) == expected


def test_rows_without_paths_stay_in_their_order(tmp_path):
    found = layouts.of_split(layouts.items(), "train")
    layouts.pyarrow.parquet.write_table(layouts.table(found, paths=False), tmp_path / "x.parquet")
    train = open_images(tmp_path / "x.parquet").train
    assert seen(train) == [(item.data, item.label) for item in found]
    assert train.names[3] == "x.parquet/3" and train.names[1:3] == ["x.parquet/1", "x.parquet/2"]


def test_labels_are_matched_by_name_between_splits(tmp_path):
    # The test split has its classes in another order, and not all of them.
    (tmp_path / "data").mkdir()
    for split, classes in (("train", ("b", "c", "a")), ("test", ("a", "b"))):
        found = layouts.items(classes, (split,))
        layouts.pyarrow.parquet.write_table(
            layouts.table(found, classes), tmp_path / f"data/{split}-00000-of-00001.parquet"
        )
    sources = open_images(tmp_path)
    assert sources.train.class_names == sources.test.class_names == ("b", "c", "a")
    truth = {item.data: item.label for item in layouts.items(("a", "b"), ("test",))}
    assert [label for data, label in seen(sources.test)] == [
        truth[data] for data, label in seen(sources.test)
    ]


@pytest.mark.parametrize("name", ["class_label", "parquet", "list"])
def test_a_class_of_test_alone_is_an_error(tmp_path, name):
    found = [*layouts.items(("a", "b"), ("train",)), *layouts.items(("b", "emu"), ("test",))]
    layouts.folder(tmp_path / "folder", found)
    with pytest.raises(ValueError, match=r"has 1 class \(emu\) that is not among the .* train"):
        write = layouts.FORMATS[name]
        if name == "class_label":
            (tmp_path / "data").mkdir()
            for split, names in (("train", ("a", "b")), ("test", ("b", "emu"))):
                layouts.pyarrow.parquet.write_table(
                    layouts.table(layouts.of_split(found, split), names),
                    tmp_path / f"data/{split}-0-of-1.parquet",
                )
            open_images(tmp_path / "data")
        else:
            open_images(write(tmp_path, found))


def test_a_part_of_the_rows_has_labels(tmp_path):
    found = layouts.of_split(layouts.items(("a", "b")), "train")
    labels = [None if i % 4 == 0 else item.label for i, item in enumerate(found)]
    whole = layouts.table(found).set_column(1, "label", layouts.pa.array(labels))
    layouts.pyarrow.parquet.write_table(whole, tmp_path / "x.parquet")
    sources = open_images(tmp_path / "x.parquet", held_out=0.5)
    assert (sources.train.labels == -1).sum() == 2
    assert (sources.test.labels >= 0).all()
    assert len(sources.test) == 3 and len(sources.train) == 5
