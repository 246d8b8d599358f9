"""Opens files of images that may be damaged, and notices a hang."""

import contextlib
import signal

from tests.data.sources.stores import open_images

# Far above what an input needs on a slow machine; a hang would last for ever.
_HANG_SECONDS = 120


@contextlib.contextmanager
def no_hang():
    """Fails if the block takes forever."""

    def fail(*_):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(_HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def opens_or_fails(path):
    """Opens an archive and reads all its images; returns whether it opened.

    Any exception but a ValueError or an OSError fails the test.
    """
    with no_hang():
        try:
            sources = open_images(path)
        except (ValueError, OSError) as error:
            assert path.name in str(error)
            return False
        for index in range(len(sources.train)):
            with contextlib.suppress(OSError):
                sources.train.read(index)
    return True


def fuzz(path, mutate, seeds):
    """Opens many damaged files; returns how many could be opened."""
    opened = 0
    for seed in seeds:
        path.write_bytes(mutate(seed))
        opened += opens_or_fails(path)
    return opened
