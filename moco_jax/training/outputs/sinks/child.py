"""The process of one logger that uses a network. It ends when its standard input does.

Libraries that use a network may hang, also at exit. Here they can't stop the training process.
"""

import contextlib
import importlib
import json
import os
import pickle
import signal
from collections.abc import Callable
from typing import IO, Any

_CALL, _CLOSE = 300, 120  # seconds after which a call, or the last one, ends this process
_MODULES = {"wandb": "wandb_run", "mlflow": "mlflow_run"}


def main() -> None:
    """Reads the settings and then (method, arguments) from standard input, as pickles.

    Writes JSON lines to standard output: {"say": line}, {"warning": text} or {"off": text}.
    """
    # The training process decides when this one ends, also under Ctrl-C and SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    records, messages = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # libraries print there, and ask there for passwords
        os.dup2(null, standard)

    def send(kind: str, text: str) -> None:
        with contextlib.suppress(OSError):
            print(json.dumps({kind: text}), file=messages, flush=True)

    settings = pickle.load(records)
    try:
        signal.alarm(_CALL)
        module = f"{__package__}.{_MODULES[settings.logger]}"
        sink = importlib.import_module(module).open_sink(settings, lambda line: send("say", line))
    except (Exception, SystemExit) as error:
        send("off", _reason(error))
        return
    _serve(sink, records, lambda error: send("warning", _reason(error)))


def _serve(sink: Any, records: IO[bytes], warn: Callable[[BaseException], None]) -> None:
    """Calls the sink for each record, and closes it after the last one; warns once."""
    warned = False
    while True:
        signal.alarm(0)
        try:
            method, arguments = pickle.load(records)
        except (EOFError, pickle.UnpicklingError):  # the training process ended
            break
        signal.alarm(_CALL)
        try:
            getattr(sink, method)(*arguments)
        except (Exception, SystemExit) as error:
            if not warned:
                warn(error)
            warned = True
    signal.alarm(_CLOSE)
    try:
        sink.close()
    except (Exception, SystemExit) as error:
        warn(error)


def _reason(error: BaseException) -> str:
    """Returns one line about an error of a library."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


if __name__ == "__main__":
    main()
