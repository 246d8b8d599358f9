"""Which local folders are copies of folders in buckets."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

_urls: dict[pathlib.Path, str] = {}  # by local folder
_workdirs: set[pathlib.Path] = set()


def note(folder: pathlib.Path, url: str) -> None:
    """Notes that a folder, or a file, is a copy that is only read."""
    _urls[folder.absolute()] = url.rstrip("/")


@contextlib.contextmanager
def workdir(folder: pathlib.Path, url: str) -> Iterator[None]:
    """Within the block, the folder is the copy of a workdir that a run writes."""
    note(folder, url)
    _workdirs.add(folder.absolute())
    try:
        yield
    finally:
        _workdirs.discard(folder.absolute())
        _urls.pop(folder.absolute(), None)


def url_of(path: str | os.PathLike) -> str:
    """Returns the URL of a path in a copy, "" for other paths."""
    absolute = pathlib.Path(path).absolute()
    for folder in (absolute, *absolute.parents):
        if folder in _urls:
            inside = absolute.relative_to(folder).as_posix()
            return _urls[folder] if inside == "." else f"{_urls[folder]}/{inside}"
    return ""


def named(path: str | os.PathLike) -> str:
    """Returns the URL of a path in a copy, other paths as they are."""
    return url_of(path) or os.fspath(path)


def described(folder: pathlib.Path) -> str:
    """Returns a workdir for the log, with both places of one in a bucket."""
    url = url_of(folder)
    return f"{url} (local copy {folder})" if url else str(folder)


def is_own(path: pathlib.Path) -> bool:
    """Returns whether a path is in the copy of a workdir: other processes see other files."""
    absolute = path.absolute()
    return any(folder in _workdirs for folder in (absolute, *absolute.parents))
