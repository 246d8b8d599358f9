"""Which files are images, by the endings of their names, and an account of all other files."""

import collections
import dataclasses
import importlib.util
import os
from collections.abc import Iterable, Sequence

from PIL import features

from moco_jax.text import printable

_SHOWN = 5  # names in a message
_MOST_ENDINGS = 20  # in a message
_COMPANIONS = frozenset(
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .log .html .pkl .npy .npz .mat .pth .pt .py "
    ".ipynb .parquet .lock .md5 .sha256 .info .rst .doc .docx .pdf".split()
)
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db"))
_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z", ".rar", ".zst")


def heif_available() -> bool:
    """Returns whether HEIC images can be read."""
    return importlib.util.find_spec("pillow_heif") is not None


def avif_available() -> bool:
    """Returns whether this Pillow reads AVIF images."""
    return "avif" in features.modules and bool(features.check("avif"))


def _extensions() -> tuple[str, ...]:
    """Returns the endings of images that can be read here."""
    always = ".jpg .jpeg .jfif .jpe .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm".split()
    more = [".avif"] * avif_available() + [".heic", ".heif"] * heif_available()
    return (*always, *more)


EXTENSIONS = _extensions()
_HEIC = "pip install 'moco-jax[heic]' reads them"
_REMEDIES = {".heic": _HEIC, ".heif": _HEIC, ".avif": "pip install 'pillow>=11.3' reads them"}


def is_hidden(name: str) -> bool:
    """Returns whether a name is not part of the data: '.git', '._x', '__MACOSX', 'Thumbs.db'."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Returns whether a file name has one of EXTENSIONS, in upper or lower case."""
    return name.lower().endswith(EXTENSIONS)


def listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """Returns the first names, for messages."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def listed_folders(folders: Iterable[str]) -> str:
    """Returns the first folder names, sorted, for messages."""
    names = [f"{name}/" if name else "images without a folder" for name in sorted(folders)]
    return listed(names)


@dataclasses.dataclass
class LeftOut:
    """The files beside the images: how many of each ending, and the names of odd ones."""

    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    odd: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, path: str) -> None:
        """Counts a file that is not an image."""
        ending = os.path.splitext(path.rpartition("/")[2])[1].lower()
        self.endings[ending or "(no ending)"] += 1

    def add_odd(self, what: str, path: str) -> None:
        """Notes a path that is not a file, such as a 'named pipe'."""
        self.odd.setdefault(what, []).append(path)

    def archives(self) -> int:
        """Returns the number of archives among the files."""
        return sum(count for ending, count in self.endings.items() if ending in _ARCHIVES)

    def notes(self) -> tuple[str, ...]:
        """Returns lines that name every ending that was left out, and the first odd paths."""
        lines = []
        total = sum(self.endings.values())
        if total:
            lines.append(f"left out: {_files(total)}: {self.by_ending()}")
        for what, paths in sorted(self.odd.items()):
            lines.append(f"left out: {len(paths)} x {what}: {listed(sorted(paths))}")
        return tuple(lines)

    def by_ending(self) -> str:
        """Returns the counts, such as '20 .jp2, 1 .heif; 10 .xml'; those of no image come last."""
        common = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        groups = [
            [item for item in common if (item[0] in _COMPANIONS) == companion]
            for companion in (False, True)
        ]
        texts = []
        for group in groups:
            parts = [_counted(ending, count) for ending, count in group[:_MOST_ENDINGS]]
            if rest := group[_MOST_ENDINGS:]:
                parts.append(f"{sum(count for _, count in rest)} with {len(rest)} other endings")
            texts += [", ".join(parts)] if parts else []
        return "; ".join(texts)


def no_images(what: str, left_out: LeftOut) -> str:
    """Returns the error message for a folder or an archive without images."""
    odd = [f"{len(paths)} x {kind}" for kind, paths in sorted(left_out.odd.items())]
    found = ", ".join(filter(None, (left_out.by_ending(), *odd)))
    return (
        f"{what} holds no images; looked for {', '.join(EXTENSIONS)} "
        f"(upper or lower case, also in subfolders), found {found or 'no files'}"
    )


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns '1 image' or '2 images'."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _files(count: int) -> str:
    return counted(count, "file")


def _counted(ending: str, count: int) -> str:
    remedy = _REMEDIES.get(ending)
    return f"{count} {printable(ending)}" + (f" ({remedy})" if remedy else "")


def cut(names: Sequence[str], width: int = 60) -> str:
    """Returns names separated by commas, cut at about this many characters."""
    parts, used = [], 0
    for name in names:
        name = printable(name) if len(name) <= width else printable(name[: width - 3]) + "..."
        if parts and used + len(name) > width:
            return ", ".join([*parts, "..."])
        parts.append(name)
        used += len(name) + 2
    return ", ".join(parts)
