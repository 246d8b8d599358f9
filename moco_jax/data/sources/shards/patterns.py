"""Finds the shards that a path names: 'a-{000..255}.tar', 'a-{train,val}-*.tar', or a folder.

Folders that exist as a pattern writes them stand for themselves, also with braces and '*'.

Shards are sorted as people count: 'a-10.tar' comes after 'a-9.tar'.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from moco_jax.buckets import objects
from moco_jax.buckets.client import Kind
from moco_jax.data.sources.file_types import counted, is_hidden, is_image, listed
from moco_jax.terminal.paths import existing_folder, is_url, matches

ENDING = ".tar"
_MOST = 1_000_000  # shards of one path
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
_NUMBERS = re.compile(r"(\d+)")
_SHOWN = 5
_THREADS = 16


def expanded(path: str) -> list[str]:
    """Returns the shards that a pattern names.

    Raises:
      FileNotFoundError: if a shard is missing; the message names the first ones.
      ValueError: if the pattern names too many shards.
    """
    if is_url(path):
        found, missing = _in_bucket(list(dict.fromkeys(_alternatives(path, path))))
    else:
        folder = existing_folder(path)
        found, missing = _on_disk(folder, _alternatives(path, path.removeprefix(folder)))
    if not found or len(missing) == len(found):
        raise FileNotFoundError(
            f"no file is named {path}: --config.data.path must name shards, such as "
            "'shards/a-{0000..0255}.tar' or 'shards/*.tar'"
        )
    if missing:
        raise FileNotFoundError(
            f"{counted(len(missing), 'shard')} of the {len(found)} of {path} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {listed(missing)}; copy them, or "
            "name the others in --config.data.path"
        )
    return sorted(dict.fromkeys(found), key=natural)


def in_folder(root: str) -> list[str]:
    """Returns the tars of a folder and its subfolders; [] at the first file of an image.

    Links are followed. A folder that can't be listed counts as empty: opening it raises the error.
    """
    found, pending, seen = [], [root], set()
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    pending.append(entry.path)
                elif is_image(entry.name):
                    return []
                elif entry.name.lower().endswith(ENDING) and entry.is_file():
                    found.append(entry.path)
    return sorted(found, key=natural)


def common_folder(shards: Sequence[str]) -> str:
    """Returns the deepest folder that all shards are in."""
    scheme = "".join(shards[0].partition("://")[:2]) if is_url(shards[0]) else ""
    return scheme + os.path.commonpath([os.path.dirname(s.removeprefix(scheme)) for s in shards])


def holes(shards: Iterable[str]) -> list[str]:
    """Returns the names that are missing in the numbering of shards, such as 'a-0003.tar'."""
    series: dict[tuple[str, str], dict[int, int]] = {}
    for shard in shards:
        parts = _NUMBERS.split(os.path.basename(shard))
        if len(parts) == 3:  # one number
            numbers = series.setdefault((parts[0], parts[2]), {})
            numbers[int(parts[1])] = len(parts[1])
    return [
        f"{start}{number:0{width}}{end}"
        for (start, end), numbers in series.items()
        for width in [min(numbers.values())]
        for number in _absent(numbers)
    ]


def natural(path: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in names by their value."""
    parts = _NUMBERS.split(path)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _absent(numbers: Iterable[int]) -> Iterator[int]:
    """Yields the first numbers between the smallest and the largest that are not there."""
    known = sorted(numbers)
    count = 0
    for before, after in zip(known, known[1:], strict=False):
        for number in range(before + 1, after):
            yield number
            if (count := count + 1) == _SHOWN:
                return


def _alternatives(pattern: str, rest: str) -> Iterator[str]:
    """Yields the texts that the rest of a pattern with braces stands for."""
    pending, count = [rest], 0
    while pending:
        text = pending.pop()
        braces = next((b for b in _BRACES.finditer(text) if "," in b[1] or ".." in b[1]), None)
        if braces is None:
            yield text
            if (count := count + 1) > _MOST:
                raise ValueError(f"--config.data.path={pattern} names more than {_MOST:,} files")
            continue
        before, after = text[: braces.start()], text[braces.end() :]
        pending += [before + choice + after for choice in reversed(_choices(braces[1], pattern))]


def _choices(inner: str, pattern: str) -> list[str]:
    """Returns what the inner part of braces stands for."""
    found = _RANGE.fullmatch(inner)
    if not found:
        return inner.split(",")
    first, last = int(found[1]), int(found[2])
    if first > last or last - first >= _MOST:
        raise ValueError(
            f"--config.data.path={pattern}: {{{inner}}} must be a range of at most {_MOST:,} "
            "numbers, the smaller one first"
        )
    width = len(found[1])
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _on_disk(folder: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the files below a folder that names name, and those that are missing.

    A name begins with a slash, if the folder has a name, and may have a '*'.
    """
    found = [
        path
        for name in dict.fromkeys(names)
        for path in (matches(folder, name) if "*" in name else [folder + name])
    ]
    return found, [path for path in found if not os.path.isfile(path)]


def _in_bucket(urls: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the objects that URLs name, which may have a '*', and those that are missing.

    Raises:
      ValueError: if the URLs name no bucket, or several.
    """
    roots = {objects.split(url)[0] for url in urls}
    root = roots.pop()
    if roots or "*" in root:
        raise ValueError(
            f"--config.data.path: {urls[0]} must name one bucket; '+' joins patterns of several"
        )
    listings: dict[tuple[str, bool], dict[str, None]] = {}
    found, missing = [], []
    for url in urls:
        start, star, rest = url.partition("*")
        folder, deep = start.rpartition("/")[0], "/" in rest  # '*' in the name of a folder
        if (folder, deep) not in listings:
            try:
                entries = (objects.below if deep else objects.directly_in)(folder)
            except objects.BucketError as error:
                if error.kind != Kind.NO_LISTS or any("*" in url for url in urls):
                    raise
                return _one_by_one(urls)
            listings[folder, deep] = dict.fromkeys(f"{root}/{entry.key}" for entry in entries)
        listing = listings[folder, deep]
        if star:
            same = re.compile(re.escape(url).replace(r"\*", "[^/]*"))
            found += filter(same.fullmatch, listing)
        else:
            found.append(url)
            missing += [] if url in listing else [url]
    return found, missing


def _one_by_one(urls: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the URLs and those that are missing, of a server that can't list objects."""

    def is_there(url: str) -> bool:
        try:
            objects.stat(url)
            return True
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(is_there, urls))
    return list(urls), [url for url, there in zip(urls, found, strict=True) if not there]
