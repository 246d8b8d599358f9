"""Names of millions of images in a few arrays: a Python string for each would take gigabytes."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

_CHUNK = 1 << 13  # names that are unpacked at once
_END = b"\0"  # of a name; no name of a file or a member of a tar holds it


class PackedNames(Sequence):
    """Names, a string each on access; 12 bytes each, and those of their text.

    Bytes that are not UTF-8 are surrogates, as in `os.fsdecode`.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        """Keeps the arrays.

        Args:
          text: uint8, the bytes of all names.
          starts: int64 [N], where each name begins in `text`.
          lengths: uint32 [N], its bytes.
        """
        self._text, self._starts, self._lengths = text, starts, lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        start = int(self._starts[index])
        return self._text[start : start + int(self._lengths[index])].tobytes().decode(*_CODING)

    def take(self, indices: np.ndarray) -> "PackedNames":
        """Returns the names at indices int [M], in that order; their text is shared."""
        return PackedNames(self._text, self._starts[indices], self._lengths[indices])

    def without_folder(self) -> tuple[int, Iterator[bytes]]:
        """Returns the names without the folder that holds all of them: their length, and parts.

        The joined parts have NUL between names. Names are in NFC, and bytes that are not UTF-8 are
        encoded as surrogates.
        """
        folder = self._common_folder()
        return sum(map(len, self._without(folder))), self._without(folder)

    def _without(self, folder: bytes) -> Iterator[bytes]:
        """Yields the names without a folder that begins all of them, in parts."""
        cut = _END + folder
        begin = 1  # without the first NUL
        for chunk in self._chunks():
            data = (_END + chunk).replace(cut, _END) if folder else _END + chunk
            yield (data if data.isascii() else _normalized(data))[begin:]
            begin = 0

    def _common_folder(self) -> bytes:
        """Returns the folder of all names with its slash, or b''."""
        if not len(self):
            return b""
        start = int(self._starts[0])
        folder = _folder_of(self._text[start : start + int(self._lengths[0])].tobytes())
        for chunk in self._chunks():
            count = chunk.count(_END) + 1
            while folder and (_END + chunk).count(_END + folder) < count:
                folder = _folder_of(folder[:-1])
        return folder

    def _chunks(self) -> Iterator[bytes]:
        """Yields some names after the other, with NUL between them."""
        for start in range(0, len(self), _CHUNK):
            lengths = self._lengths[start : start + _CHUNK].astype(np.int64)
            ends = np.cumsum(lengths + 1)
            # The positions in the text, and one for each NUL.
            shifts = self._starts[start : start + _CHUNK] - (ends - lengths - 1)
            positions = np.arange(ends[-1]) + np.repeat(shifts, lengths + 1)
            data = self._text[np.minimum(positions, max(len(self._text) - 1, 0))]
            data[ends - 1] = 0
            yield data[:-1].tobytes()


_CODING = ("utf-8", "surrogateescape")


def pack(names: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the text uint8 and the lengths uint32 [N] of names."""
    text = np.frombuffer(b"".join(names), np.uint8)
    return text, np.fromiter(map(len, names), np.uint32, len(names))


def _folder_of(path: bytes) -> bytes:
    """Returns the folder of a path with its slash, or b''."""
    return path[: path.rfind(b"/") + 1]


def _normalized(data: bytes) -> bytes:
    text = unicodedata.normalize("NFC", data.decode(*_CODING))
    return text.encode(errors="surrogatepass")
