"""Ctrl-C and SIGTERM end a command with one line and without a traceback, whatever it is doing.

The training loop has its own handling, `moco_jax/training/interruption.py`, which saves the state.
"""

import contextlib
import functools
import os
import pathlib
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes
_GRACE = 3.0  # seconds that a command has to end by itself, after the first signal

_undo: list[Callable[[], object]] = []  # what removes the work that is not finished
_short = threading.RLock()  # held in the blocks of `delayed`


class Terminated(BaseException):
    """Raised at the current line when SIGTERM comes, as KeyboardInterrupt is for Ctrl-C."""


def end_while_importing() -> None:
    """Ends the process on Ctrl-C with one line; importing JAX takes seconds.

    `ending` replaces this. A process that ignores Ctrl-C goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: _end(INTERRUPTED, "interrupted"))


@contextlib.contextmanager
def ending(message: str, *, waits: bool) -> Iterator[None]:
    """Within the block, Ctrl-C raises KeyboardInterrupt and SIGTERM raises `Terminated`.

    Python handles a signal only between two of its own instructions. If the process has not ended
    some seconds later, since it compiles or waits for threads, or if a second signal comes, it
    ends at once with the message; before, it calls the functions of `undone`.

    Args:
      message: the line that is printed.
      waits: never end at once: the command saves its state after a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone can catch signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        with contextlib.nullcontext() if waits else _watched(message):
            yield
    finally:
        sys.unraisablehook = hook
        # What comes after is the end of the process, which shows no traceback.
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
        if before[signal.SIGINT] is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Calls `undo` after the block, and also if a signal ends the process within the block."""
    _undo.append(undo)
    try:
        yield
    finally:
        try:
            undo()
        finally:
            _undo.remove(undo)


def unfinished(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Removes a file after the block, and also if a signal ends the process within the block."""
    return undone(functools.partial(path.unlink, missing_ok=True))


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until the end of the block, which must be short.

    So the start of a process can't be interrupted before its number is known.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone catches signals
        return
    came = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = {number: handler for number, handler in before.items() if callable(handler)}
    for number in caught:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        with _short:
            yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        for number in came:
            caught[number](number, None)  # to raise the signal again would look like a second one


@contextlib.contextmanager
def _watched(message: str) -> Iterator[None]:
    """Runs the block beside a thread that ends the process some time after a signal."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, message), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)  # ends the thread


def _watch(reader: int, message: str) -> None:
    """Ends the process a while after the first signal, or at the second one."""
    codes, code = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}, 0
    while select.select([reader], [], [], _GRACE if code else None)[0]:
        number = os.read(reader, 1)
        if not number:  # the block has ended
            os.close(reader)
            return
        if number[0] in codes:
            if code:
                break
            code = codes[signal.Signals(number[0])]
    _end(code, message if code == INTERRUPTED else "terminated")


def _raise_again(lost: Any) -> None:
    """Handles an exception that Python ignores, since it was raised in a callback of the memory.

    A signal is delivered once more. It may have raised an exception of another handling, such as
    that of the training loop, which has noted the signal.
    """
    if issubclass(lost.exc_type, (Exception, SystemExit, GeneratorExit)):
        sys.__unraisablehook__(lost)
        return
    number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(lost.exc_type)
    if number:
        again = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
        again.daemon = True
        again.start()


def _terminate(*_) -> None:
    raise Terminated


def _end(code: int, message: str) -> None:
    _short.acquire(timeout=1.0)  # a process that is starting has a number then, to be killed by
    for undo in reversed(list(_undo)):
        with contextlib.suppress(Exception):
            undo()
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
    os._exit(code)
