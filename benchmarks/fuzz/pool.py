"""Processes that read inputs; one that hangs or dies is replaced."""

import collections
import multiprocessing
import pathlib
import time
from collections.abc import Iterator
from multiprocessing import connection as connections
from typing import NamedTuple

PROCESSES = 2
_SECONDS = (20, 60)  # an input has in the first and the second attempt
_START = 300  # seconds that a process has for its imports and its first input of a kind


class Input(NamedTuple):
    """One input; `attempt` counts from 0."""

    kind: str
    number: int
    attempt: int = 0


class Worker:
    """A process that reads inputs one after the other; see `worker.serve`."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self._arguments = folder, seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            self.connection.recv()
        except EOFError:
            raise RuntimeError("a process that reads inputs can't start") from None
        self.input: Input | None = None
        self._known: set[str] = set()  # kinds whose originals it has read
        self._deadline = 0.0

    def give(self, given: Input) -> None:
        """Sends an input."""
        seconds = _SECONDS[given.attempt] if given.kind in self._known else _START
        self.input, self._deadline = given, time.monotonic() + seconds
        self._known.add(given.kind)
        self.connection.send(given[:2])

    @property
    def hangs(self) -> bool:
        return time.monotonic() > self._deadline

    def restart(self) -> int:
        """Ends the process and starts another one; returns the exit code of the first."""
        self._process.join(1)  # a process that crashed has its own exit code
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        self._start()
        return code

    def end(self) -> None:
        self._process.kill()


def _serve(*arguments) -> None:
    from benchmarks.fuzz import worker

    worker.serve(*arguments)


def outcomes(folder: pathlib.Path, seed: int, inputs: list[Input]) -> Iterator[tuple[Input, tuple]]:
    """Yields each input with (outcome, label, detail), as they become known."""
    left = collections.deque(inputs)
    workers = [Worker(folder, seed) for _ in range(min(PROCESSES, len(inputs)))]
    try:
        while left or any(worker.input for worker in workers):
            for worker in workers:
                if worker.input is None and left:
                    worker.give(left.popleft())
            ready = connections.wait([w.connection for w in workers if w.input], timeout=1)
            for worker in workers:
                given = worker.input
                if given is None or worker.connection not in ready:
                    continue
                worker.input = None
                try:
                    answer = worker.connection.recv()
                except (EOFError, ConnectionError):
                    answer = ("TRACEBACK", "", f"the process ended with {worker.restart()}")
                if isinstance(answer, str):
                    raise RuntimeError(f"{given} could not be made or judged:\n{answer}")
                yield given, answer
            for worker in workers:
                given = worker.input
                if given is None or not worker.hangs:
                    continue
                worker.restart()
                if given.attempt + 1 < len(_SECONDS):
                    left.appendleft(given._replace(attempt=given.attempt + 1))
                else:
                    yield given, ("HANG", "", f"no answer in {_SECONDS[-1]} s")
    finally:
        for worker in workers:
            worker.end()
