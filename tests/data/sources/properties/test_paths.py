"""Patterns name the shards that were written, '+' joins paths, and lists keep what they hold."""

import json
import os
import pathlib
import tempfile

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from moco_jax.data.sources.shards import index_file, patterns, samples
from moco_jax.data.sources.source import Source
from moco_jax.terminal.paths import parts
from tests.data.sources.properties.data_sets import ENDINGS, names
from tests.data.sources.shards.writing import write_shard
from tests.data.sources.stores import open_images, write_folder, write_tar

# A pattern can't write these in the name of a shard itself; folders may have them.
_NO_PATTERN = names().filter(lambda name: not set("{}*") & set(name))


@st.composite
def shard_names(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Returns a pattern, and the names of the shards that it stands for, in their order."""
    start, end = draw(_NO_PATTERN), draw(st.sampled_from(("", "-of-9", " é")))
    start = start.rstrip("0123456789") + "-"
    first, count = draw(st.integers(0, 120)), draw(st.integers(1, 12))
    width = draw(st.integers(len(str(first)), 4))
    numbers = [f"{number:0{width}}" for number in range(first, first + count)]
    star = draw(st.booleans())
    inner = "*" if star else f"{{{numbers[0]}..{numbers[-1]}}}"
    if not star and draw(st.booleans()) and count > 1:
        inner = f"{{{','.join(draw(st.permutations(numbers)))}}}"
    return f"{start}{inner}{end}.tar", [f"{start}{number}{end}.tar" for number in numbers]


@given(names(), shard_names())
def test_a_pattern_stands_for_the_shards_that_were_written(folder, drawn):
    pattern, written = drawn
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made) / folder
        for number, name in enumerate(written):
            write_shard(root / name, {f"{number}.jpg": str(number)})
        assert patterns.expanded(f"{root}/{pattern}") == [f"{root}/{name}" for name in written]
        train = open_images(f"{root}/{pattern}").train
        assert [train.read(i) for i in range(len(train))] == [
            str(number).encode() for number in range(len(written))
        ]
        assert patterns.in_folder(str(root)) == [f"{root}/{name}" for name in written]


_INNER = st.sampled_from(("", "/a-0.tar", "/a-{0..1}.tar", "/*.tar", "/{a,b}-*.tar"))


@given(st.lists(st.tuples(names(bytes_too=True), _INNER), min_size=2, max_size=4, unique=True))
def test_joined_paths(drawn):
    with tempfile.TemporaryDirectory() as made:
        for folder, _ in drawn:
            (pathlib.Path(made) / folder).mkdir(exist_ok=True)
            (pathlib.Path(made) / folder / "a-0.tar").touch()
        paths = [f"{made}/{folder}{inner}" for folder, inner in drawn]
        assume(not any(_ambiguous([folder for folder, _ in drawn])))
        assert parts("+".join(paths)) == paths
        assert parts(paths[0]) == paths[:1]


def _ambiguous(folders: list[str]):
    """Yields whether the beginning of a name is a name too: 'a' and 'a+b' may be joined paths."""
    return (a != b and b.startswith(f"{a}+") for a in folders for b in folders)


@given(st.lists(names(bytes_too=True), min_size=1, max_size=12, unique=True), st.data())
def test_an_index_that_is_written_is_read_again(stems, data):
    kinds = st.sampled_from(("", ".cls", ".txt", ".json"))
    members: dict[str, bytes] = {}
    for stem in stems:
        members[stem + data.draw(st.sampled_from(ENDINGS))] = os.fsencode(stem)
        text = data.draw(st.text(max_size=20))
        kind = data.draw(kinds)
        label = json.dumps({"label": text}) if kind == ".json" else text
        if kind:
            members[stem + kind] = label.encode(errors="replace")
    with tempfile.TemporaryDirectory() as made:
        path = str(write_shard(pathlib.Path(made) / "a.tar", members))
        listed = samples.list_samples(path)
        first, second = index_file.open_shard(path), index_file.open_shard(path)
        assert os.path.exists(path + index_file.ENDING)
    for found in (first.samples, second.samples):
        for name in ("offsets", "sizes", "text", "lengths"):
            np.testing.assert_array_equal(getattr(found, name), getattr(listed, name))
        assert found.labels.keys() == listed.labels.keys()
        for kind, labels in listed.labels.items():
            np.testing.assert_array_equal(found.labels[kind].codes, labels.codes)
            assert found.labels[kind].table() == labels.table()
        for name in ("left_out", "endings", "warnings"):
            assert _plain(getattr(found, name)) == _plain(getattr(listed, name))


def _plain(value):
    """Returns a value as JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


def _read(source: Source) -> list[str]:
    return [os.fsdecode(source.read(index)) for index in range(len(source))]


@given(st.lists(names(bytes_too=True), min_size=1, max_size=9, unique=True), st.booleans())
def test_every_image_of_an_archive_is_at_its_index(stems, in_tar):
    files = [f"{stem}.jpg" for stem in stems]
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made) / "x"
        path = write_tar(root.with_suffix(".tar"), files) if in_tar else write_folder(root, files)
        train = open_images(path).train
        assert _read(train) == sorted(files)
        assert [name.removeprefix(f"{root}/") for name in train.names] == sorted(files)
