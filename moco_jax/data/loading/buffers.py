"""Reuses host memory for batches of images."""

import threading
import weakref

import numpy as np

_PAGE = 4096  # bytes; the CPU backend of JAX does not copy memory that is aligned to 64 bytes


class Buffers:
    """A pool of host memory: memory returns to it when the last reference to an array is gone.

    The caller can't know that moment: a copy to an accelerator reads the memory for a while, and
    on the CPU the device array is this memory. New memory for each batch would cost a fifth of the
    decoding time, since the kernel clears every page.

    Attributes:
      allocated: number of allocations so far, in use or free.
    """

    def __init__(self):
        self.allocated = 0
        self._free: dict[int, list[memoryview]] = {}
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an array uint8[shape] with arbitrary contents."""
        size = int(np.prod(shape))
        with self._lock:
            free = self._free.setdefault(size, [])
            if free:
                memory = free.pop()
            else:
                memory = _aligned(size)
                self.allocated += 1
        array = np.frombuffer(memory, np.uint8)
        # This array does not own its memory, so NumPy makes it the base of every view: it is
        # finalized after its last view.
        weakref.finalize(array, free.append, memory).atexit = False
        return array.reshape(shape)


def _aligned(size: int) -> memoryview:
    """Returns memory that starts at a page boundary."""
    memory = np.empty(size + _PAGE, np.uint8)  # np.empty requests huge pages
    start = -memory.ctypes.data % _PAGE
    return memory.data[start : start + size]
