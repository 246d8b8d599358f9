"""A logger that uses a network: it runs in its own process and never blocks the run."""

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.terminal import logs, progress, style
from moco_jax.text import message as escaped
from moco_jax.training.outputs.sinks.settings import Settings

_MODULE = "moco_jax.training.outputs.sinks.child"
_WAITING = 1000  # records that may wait to be sent
_FLUSH = 20.0  # seconds to send what is left at the end of a run
_LAST_MESSAGES = 2.0  # seconds to read the last messages of a process that ended


class Remote:
    """Sends records to the process of a logger (`child.py`), through a queue and a thread.

    When the logger is too slow, records are dropped. When it fails or ends, it is off for the rest
    of the run. Each of these prints one warning.
    """

    def __init__(self, settings: Settings, title: str):
        """Starts the process.

        Args:
          settings: for the logger.
          title: of the logger, for messages.
        """
        self._title = title
        self._queue: queue.Queue = queue.Queue()
        self._off = self._closing = False
        self._dropped = 0
        self._deadline = 0.0
        # The process sees the packages that this one sees.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"import {_MODULE} as child; child.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in a terminal does not reach it
        )
        self._queue.put(settings)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._send, daemon=True).start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put("scalars", step, dict(values))

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        self._put("images", step, name, np.array(images))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        self._put("histogram", step, name, np.array(values))

    def end(self) -> None:
        """Begins to close: there are no more records. The time limit of `close` starts."""
        if self._closing:
            return
        self._closing, self._deadline = True, time.monotonic() + _FLUSH
        if not self._off:
            self._queue.put(None)

    def close(self) -> None:
        """Waits until all is sent, for a limited time."""
        self.end()
        try:
            with progress.phase(f"sending to {self._title}", f"at most {_FLUSH:g} s"):
                self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            logs.warning(
                "%s: not everything was sent in %g s; what is missing is in metrics.jsonl",
                self._title,
                _FLUSH,
            )
        self._reader.join(_LAST_MESSAGES)
        if self._dropped:
            logs.warning("%s: %d records were dropped", self._title, self._dropped)

    def _put(self, method: str, *arguments: Any) -> None:
        if self._off:
            return
        if self._queue.qsize() < _WAITING:
            self._queue.put((method, arguments))
        else:
            if not self._dropped:
                logs.warning(
                    "%s is too slow: %d records wait, and later ones are dropped. metrics.jsonl "
                    "has them.",
                    self._title,
                    _WAITING,
                )
            self._dropped += 1

    def _send(self) -> None:
        """Sends records until there are no more, or the process has ended."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            with pipe:
                for record in iter(self._queue.get, None):
                    pickle.dump(record, pipe)
                    pipe.flush()
        except OSError:
            self._off = True

    def _read(self) -> None:
        """Prints the messages of the process until it ends."""
        pipe, explained = self._process.stdout, False
        assert pipe is not None
        with pipe:
            for line in pipe:
                [(kind, text)] = json.loads(line).items()
                if kind == "say":
                    style.print_line(escaped(text), sys.stdout)
                    continue
                explained = explained or kind == "off"
                without = " without it" if kind == "off" else ""
                text = escaped(text).rstrip(".")
                logs.warning("%s: %s. The run goes on%s.", self._title, text, without)
        if not self._closing:
            self._off = True
            if not explained:
                logs.warning("%s ended. The run goes on without it.", self._title)
