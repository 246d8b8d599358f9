"""Packed names are the sequence of strings that they were made of."""

import random

import numpy as np
import pytest

from moco_jax.data.sources import packed_names
from moco_jax.data.sources.packed_names import PackedNames, pack
from moco_jax.data.sources.source import Source, fingerprint, take

NAMES = ("a/1.jpg", "", "ä/é.jpg", "\udcff/x.jpg", "a b\n.jpg", "日本/2.png", "e\u0301/3.jpg")


def packed(names):
    text, lengths = pack([name.encode("utf-8", "surrogateescape") for name in names])
    return PackedNames(text, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)


def source(names):
    return Source("x", lambda index: b"image", names, None, ())


def test_names_are_those_packed():
    names = packed(NAMES)
    assert len(names) == len(NAMES) and list(names) == list(NAMES)
    assert names[-1] == NAMES[-1] and names[1:3] == list(NAMES[1:3])
    with pytest.raises(IndexError):
        names[len(NAMES)]


def test_names_taken():
    some = take(source(packed(NAMES)), np.array([3, 0, 3]), "y").names
    assert list(some) == [NAMES[3], NAMES[0], NAMES[3]]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
@pytest.mark.parametrize("seed", range(20))
def test_fingerprint_is_that_of_a_list(monkeypatch, chunk, seed):
    monkeypatch.setattr(packed_names, "_CHUNK", chunk)
    rng = random.Random(seed)
    start = rng.choice(("", "/", "/data/", "data/train/", "dät/\udcfe/"))
    parts = ("a", "b", "ab", "é", "\udcff", "e\u0301", " ")
    names = [
        start + "/".join(rng.choice(parts) for _ in range(rng.randrange(1, 4)))
        for _ in range(rng.randrange(1, 9))
    ]
    assert fingerprint(source(packed(names))) == fingerprint(source(names))
    order = np.array(rng.sample(range(len(names)), len(names)))
    assert fingerprint(source(packed(names).take(order))) == fingerprint(
        source([names[i] for i in order])
    )
