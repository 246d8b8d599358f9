"""Packed names are the sequence of strings that they were made of."""

import hashlib
import os
import random
import tracemalloc
import unicodedata

import numpy as np
import pytest

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
    return ComputedNames(len(names), names.__getitem__)


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


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
@pytest.mark.parametrize("seed", range(20))
def test_fingerprint_of_names_in_parts(monkeypatch, chunk, seed):
    monkeypatch.setattr(packed_names, "_CHUNK", chunk)
    monkeypatch.setattr(source_lib, "_CHUNK", chunk)
    rng = random.Random(seed)
    start = rng.choice(("", "/", "/data/", "data/train/", "dät/\udcfe/", "e\u0301/"))
    parts = ("a", "b", "ab", "é", "\udcff", "e\u0301", "\u0301e", "\u0338", " ")
    names = [
        start + "/".join(rng.choice(parts) for _ in range(rng.randrange(1, 4)))
        for _ in range(rng.randrange(1, 9))
    ]
    expected = digest_at_once(names)
    for kind in (list, packed, computed):
        assert fingerprint(source(kind(names))) == expected
    order = np.array(rng.sample(range(len(names)), len(names)))
    expected = digest_at_once([names[i] for i in order])
    for kind in (packed, computed):
        assert fingerprint(take(source(kind(names)), order, "y")) == expected


@pytest.mark.parametrize(
    "kind", [packed, lambda names: ComputedNames(len(names), "image {}".format)]
)
def test_fingerprint_does_not_hold_all_names(monkeypatch, kind):
    monkeypatch.setattr(packed_names, "_CHUNK", 1 << 10)
    monkeypatch.setattr(source_lib, "_CHUNK", 1 << 10)
    names = kind([f"class/{i:060}.jpg" for i in range(100_000)])
    tracemalloc.start()
    fingerprint(source(names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # all of them are 7 MB as bytes
