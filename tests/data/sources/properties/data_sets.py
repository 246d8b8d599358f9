"""Draws names that people and programs give to files, and data sets of such names."""

import os
import unicodedata

from hypothesis import strategies as st

from moco_jax.data.sources import split_names
from moco_jax.data.sources.file_types import is_hidden
from tests.data.sources.tables.layouts import Item

# Python's, shells', CSV's and terminals' own characters, accents in two forms, and long names.
_ODD = (
    *("a", "b", "cat", "A", "a b", " ", "  ", "\u3000", "\xa0", "ä", "a\u0308", "é", "e\u0301"),
    *("日本", "😀", "\uffff", "\u202e", "\ufeff", "\u0338", "\x1b[2J", "\x85", "\u2028", "\x7f"),
    *("\n", "\r", "\t", "\r\n", "\x1c", "+", "++", "-", "--", "_", ".", "..", "...", "~", "#", "$"),
    *("{0..2}", "{a,b}", "{", "}", "*", "**", "?", "[a]", "[", "]", "!", "'", '"', '""', "\\", "`"),
    *(",", ";", ":", "=", "%41", "%", "&", "|", "<", ">", "(", ")", "@", "s3:", "gs:", "0", "-1"),
    *("10", "9", "007", "1e5", "None", "null", "NaN", "label", "path", ".cls", ".tar", "x" * 90),
)
ENDINGS = (".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp", ".bmp", ".gif", ".tiff")
_MOST_BYTES = 180  # of 255 that a file system takes: tests write endings and numbers too


def _fits(name: str) -> bool:
    return len(os.fsencode(name)) <= _MOST_BYTES and not is_hidden(name)


def _characters(categories: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.characters(exclude_categories=categories, exclude_characters="/\0")


def names(bytes_too: bool = False) -> st.SearchStrategy[str]:
    """Returns names of files and folders that are not hidden.

    With `bytes_too`, some have bytes that are no UTF-8, as `os.fsdecode` returns them.
    """
    more = ("\udcff", "\udce9") if bytes_too else ()
    part = st.one_of(st.sampled_from((*_ODD, *more)), _characters(("Cs",)))
    return st.lists(part, min_size=1, max_size=4).map("".join).filter(_fits)


def class_names(bytes_too: bool = False) -> st.SearchStrategy[str]:
    """Returns names that are those of classes alone: not of splits, masks or all images."""
    return names(bytes_too).filter(
        lambda name: (
            not (
                split_names.looks_like_split(name)
                or split_names.holds_masks(name)
                or split_names.holds_images(name)
            )
        )
    )


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@st.composite
def data_sets(
    draw: st.DrawFn, splits=("train", "test"), bytes_too: bool = False, spaces: bool = True
) -> list[Item]:
    """Returns images in at least two classes of each split, in any order.

    The contents of an image are its split, class and name. Without `spaces`, no class begins or
    ends with one.
    """
    known = class_names(bytes_too)
    if not spaces:
        known = known.filter(lambda name: name == name.strip(" \t\r\n"))
    classes = draw(st.lists(known, min_size=2, max_size=4, unique_by=_plain))
    items = []
    for split in splits:
        used = classes if split == splits[0] else classes[: draw(st.integers(2, len(classes)))]
        for label in used:
            stems = draw(st.lists(names(bytes_too), min_size=1, max_size=3, unique=True))
            for stem in stems:
                endings = st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=2, unique=True)
                for ending in draw(endings):
                    path = f"{split}/{label}/{stem}{ending}"
                    items.append(Item(split, label, stem + ending, os.fsencode(path)))
    return draw(st.permutations(items))
