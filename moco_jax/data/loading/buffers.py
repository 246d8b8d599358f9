"""Host memory for batches of images, used again and again."""

import threading
import weakref

import numpy as np

_PAGE = 4096  # bytes; JAX's CPU backend takes memory that is aligned to 64 as it is, uncopied


class Buffers:
    """Gives memory for canvases, and takes it back by itself once nothing refers to it.

    That moment is not in our hands: a copy to an accelerator reads the memory for a while, and on
    the CPU the device array is this memory. Fresh memory for each batch instead costs a fifth of
    the decoding time, since the kernel clears every page of it.

    Attributes:
      allocated: pieces of memory in existence, in use or free.
    """

    def __init__(self):
        """Begins with none."""
        self.allocated = 0
        self._free: dict[int, list[memoryview]] = {}
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an array uint8[shape] whose contents are arbitrary."""
        size = int(np.prod(shape))
        with self._lock:
            free = self._free.setdefault(size, [])
            if free:
                memory = free.pop()
            else:
                memory = _aligned(size)
                self.allocated += 1
        array = np.frombuffer(memory, np.uint8)
        # NumPy keeps this array, which owns no memory of NumPy's, as the base of every view of it:
        # when it goes, all views have gone.
        weakref.finalize(array, free.append, memory).atexit = False
        return array.reshape(shape)


def _aligned(size: int) -> memoryview:
    """Returns memory that starts at a page."""
    memory = np.empty(size + _PAGE, np.uint8)  # NumPy asks the kernel for large pages
    start = -memory.ctypes.data % _PAGE
    return memory.data[start : start + size]
