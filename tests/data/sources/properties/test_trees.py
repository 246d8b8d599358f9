"""Any tree of files is a data set, the same from a folder, a tar and a zip, or one clear error."""

import os
import pathlib
import tarfile
import tempfile
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from moco_jax.data.sources.file_types import is_hidden, is_image
from moco_jax.data.sources.source import Source, Sources
from tests.data.sources.properties.data_sets import ENDINGS, names
from tests.data.sources.stores import open_images, write_folder

# Names that mean something: splits, masks, folders of all images, hidden ones, other data.
_FOLDERS = (
    *("train", "Training", "train2017", "test", "TEST", "val", "validation", "predict", "extra"),
    *("images", "JPEGImages", "masks", "gtFine", "labels", "a", "b", "cat", "dog", "cat_train"),
    *("cat_test", "fold1", ".git", "__MACOSX", "Thumbs.db", "é", "e\u0301", "x.tar", "y.jpg"),
)
_STEMS = ("1", "2", "1_mask", "2_gt", "train", ".1", "._1", "é", "e\u0301")
_OTHERS = (".txt", ".csv", ".json", ".parquet.txt", ".xml", "", ".jpg.txt", ".tar.gz.md5")


@st.composite
def trees(draw: st.DrawFn) -> list[str]:
    """Returns paths of files: no file is a folder of another."""
    folder = st.sampled_from(_FOLDERS) | names()
    folders = draw(st.lists(st.lists(folder, max_size=3).map("/".join), min_size=1, max_size=6))
    stem = st.sampled_from(_STEMS) | names()
    ending = st.sampled_from(ENDINGS) | st.sampled_from(ENDINGS) | st.sampled_from(_OTHERS)
    files = st.lists(st.builds(str.__add__, stem, ending), min_size=1, max_size=3)
    paths = {os.path.join(folder, name) for folder in folders for name in draw(files)}
    above = {part for path in paths for part in _above(path)}
    return draw(st.permutations(sorted(paths - above)))


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def in_tar(root: pathlib.Path, paths: list[str]) -> pathlib.Path:
    file = root.with_suffix(".tar")
    with tarfile.open(file, "w") as archive:
        for path in paths:
            archive.add(root / path, path)
    return file


def in_zip(root: pathlib.Path, paths: list[str]) -> pathlib.Path:
    file = root.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            archive.write(root / path, path)
    return file


def opened(path: pathlib.Path, **options) -> Sources | None:
    """Returns the data set, None if it ends in an error that says what to do."""
    try:
        return open_images(path, **options)
    except ValueError as error:
        assert str(path) in str(error) and ("data." in str(error) or "no images" in str(error))
        return None


def rows(source: Source | None) -> list[tuple[bytes, str]]:
    """Returns the path of each image, which is its contents, and its class."""
    if source is None:
        return []
    classes = [*source.class_names, ""]
    labels = [-1] * len(source) if source.labels is None else source.labels
    return [(source.read(i), classes[label]) for i, label in enumerate(labels)]


def check(sources: Sources, paths: list[str]) -> None:
    """Fails unless all images are of the tree, none is in two splits, and classes are its own."""
    train, test = rows(sources.train), rows(sources.test)
    read = [os.fsdecode(path) for path, _ in train + test]
    assert len(set(read)) == len(read) and set(read) <= set(paths)
    assert all(is_image(path) and not any(map(is_hidden, path.split("/"))) for path in read)
    assert train and all(label for _, label in test)
    for source in filter(None, (sources.train, sources.test)):
        assert len(source.names) == len(source) and len(set(source.class_names)) == len(
            source.class_names
        )
    if sources.test is not None and sources.train.class_names:
        assert sources.test.class_names == sources.train.class_names
        assert {label for _, label in test} <= set(sources.train.class_names)


@given(
    trees(),
    st.sampled_from(("first", "leaf")),
    st.sampled_from(("train", "")),
    st.sampled_from((0.0, 0.3)),
)
def test_a_tree_of_files(paths, class_folders, train_split, held_out):
    options = {
        "class_folders": class_folders, "train_split": train_split, "held_out": held_out,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        root = write_folder(pathlib.Path(made) / "x", paths)
        (root / "empty/inner").mkdir(parents=True, exist_ok=True)
        found = [
            opened(place, **options) for place in (root, in_tar(root, paths), in_zip(root, paths))
        ]
        whole = found[0]
        assert [x is None for x in found] == [whole is None] * 3
        if whole is None:
            return
        check(whole, paths)
        for other in found[1:]:
            assert rows(other.train) == rows(whole.train)
            assert rows(other.test) == rows(whole.test)
            assert other.train.class_names == whole.train.class_names
