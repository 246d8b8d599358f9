"""Packed names are the sequence of strings that they were made of."""

import hashlib
import os
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_jax.data.sources import packed_names
from moco_jax.data.sources import source as source_lib
from moco_jax.data.sources.packed_names import PackedNames, pack
from moco_jax.data.sources.source import ComputedNames, Source, fingerprint, take

NAMES = ("a/1.jpg", "", "ä/é.jpg", "\udcff/x.jpg", "a b\n.jpg", "日本/2.png", "e\u0301/3.jpg")


def packed(names):
    text, lengths = pack([name.encode("utf-8", "surrogateescape") for name in names])
    return PackedNames(text, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)


def source(names):
    return Source("x", lambda index: b"image", names, None, ())


def computed(names):
    return ComputedNames(len(names), lambda indices: [names[index] for index in indices])


def digest_at_once(names):
    """Returns the fingerprint of `source(names)`, written down as checkpoints have it."""
    start = os.path.commonprefix(names).rfind("/") + 1
    text = unicodedata.normalize("NFC", "\0".join(name[start:] for name in names))
    digest = hashlib.blake2b(digest_size=16)
    for part in (b"%d" % len(names), text.encode(errors="surrogatepass"), b"", b""):
        digest.update(b"%d:" % len(part) + part)
    digest.update(hashlib.blake2b(b"image", digest_size=16).digest() * len(names))
    return digest.hexdigest()


def test_names_are_those_packed():
    names = packed(NAMES)
    assert len(names) == len(NAMES) and list(names) == list(NAMES)
    assert names[-1] == NAMES[-1] and names[1:3] == list(NAMES[1:3])
    with pytest.raises(IndexError):
        names[len(NAMES)]


def test_names_taken():
    some = take(source(packed(NAMES)), np.array([3, 0, 3]), "y").names
    assert list(some) == [NAMES[3], NAMES[0], NAMES[3]]


def computed_names(indices):
    return [f"image {index}" for index in indices.tolist()]


_PARTS = ("a", "b", "ab", "é", "\udcff", "e\u0301", "\u0301e", "\u0338", " ", "\n")
_FOLDERS = ("", "/", "/data/", "data/train/", "dät/\udcfe/", "e\u0301/")


def below_one_folder() -> st.SearchStrategy[list[str]]:
    """Returns names of which all are in one folder."""
    part = st.sampled_from(_PARTS) | st.characters(
        exclude_categories=("Cs",), exclude_characters="\0"
    )
    path = st.lists(part, min_size=1, max_size=3).map("/".join)
    paths = st.lists(path, min_size=1, max_size=9)
    return st.builds(
        lambda start, rest: [start + x for x in rest], st.sampled_from(_FOLDERS), paths
    )


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
@given(names=below_one_folder(), data=st.data())
@settings(max_examples=5 * settings().max_examples)
def test_fingerprint_of_names_in_parts(chunk, names, data):
    order = data.draw(st.permutations(range(len(names))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_names, "_CHUNK", chunk)
        patch.setattr(source_lib, "_CHUNK", chunk)
        expected = digest_at_once(names)
        for kind in (list, packed, computed):
            assert fingerprint(source(kind(names))) == expected
        expected = digest_at_once([names[i] for i in order])
        for kind in (packed, computed):
            assert fingerprint(take(source(kind(names)), np.array(order), "y")) == expected


@pytest.mark.parametrize("kind", [packed, lambda names: ComputedNames(len(names), computed_names)])
def test_fingerprint_does_not_hold_all_names(monkeypatch, kind):
    monkeypatch.setattr(packed_names, "_CHUNK", 1 << 10)
    monkeypatch.setattr(source_lib, "_CHUNK", 1 << 10)
    names = kind([f"class/{i:060}.jpg" for i in range(100_000)])
    tracemalloc.start()
    fingerprint(source(names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # all of them are 7 MB as bytes
