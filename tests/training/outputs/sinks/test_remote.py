"""A logger in its own process: it may fail, end, hang or be slow, and the run goes on."""

import logging
import pathlib
import time
from typing import Any

import numpy as np
import pytest

from moco_jax.training.outputs.sinks import loggers, remote
from moco_jax.training.outputs.sinks.remote import Remote
from moco_jax.training.outputs.sinks.settings import Settings
from moco_jax.training.outputs.sinks.tensorboard import TensorBoard
from tests.training.outputs.test_metrics_log import events

# A library with the functions of W&B that are used. It writes its calls to a file.
FAKE = """
import json, os, sys, time

class Settings:
    model_fields = ()
    def __init__(self, **options): pass

class Image(str):
    def __new__(cls, image): return str.__new__(cls, f"image {image.shape}")

def Histogram(np_histogram): return f"{np_histogram[0].sum()} values"

def note(*what):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    url = "https://example.org/run"
    def define_metric(self, *_, **__): pass
    def log(self, values):
        print("noise"); print("noise", file=sys.stderr)
        %(log)s
        note("log", values)
    def finish(self):
        %(finish)s
        note("finish")

def init(**options):
    note("init", options["project"], options["entity"], options["name"])
    %(init)s
    return Run()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Returns a function that starts a logger whose library behaves as the arguments say."""
    calls = tmp_path / "calls.jsonl"
    monkeypatch.setenv("CALLS", str(calls))
    library = tmp_path / "library"
    library.mkdir()

    def start(init="pass", log="pass", finish="pass", target="team/project") -> Remote:
        code = FAKE % {"init": init, "log": log, "finish": finish}
        (library / "wandb.py").write_text(code)
        monkeypatch.syspath_prepend(str(library))
        settings = Settings("wandb", target, tmp_path, "name", "tiny", 0, {"lr": 0.1})
        made.append(Remote(settings, "W&B"))
        return made[-1]

    made: list[Remote] = []
    yield start
    for logger in made:
        assert logger._process.poll() is not None  # none outlives its run


def calls(folder: pathlib.Path) -> str:
    path = folder / "calls.jsonl"
    return path.read_text() if path.exists() else ""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_everything_is_sent_in_order(tmp_path, start, caplog, capsys):
    logger = start()
    values = {"loss": 1.5}
    logger.scalars(1, values)
    values["loss"] = 7.0  # the caller may change it
    logger.images(2, "views", np.zeros((2, 4, 6, 3), np.uint8))
    logger.histogram(3, "similarity", np.arange(5.0))
    logger.close()
    assert calls(tmp_path).splitlines() == [
        '["init", "project", "team", "name"]',
        '["log", {"step": 1, "loss": 1.5}]',
        '["log", {"step": 2, "views": ["image (4, 6, 3)", "image (4, 6, 3)"]}]',
        '["log", {"step": 3, "similarity": "5 values"}]',
        '["finish"]',
    ]
    assert messages(caplog) == []
    assert capsys.readouterr() == ("W&B: https://example.org/run\n", "")


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no\\n network')", "sys.exit('no network')", "import absent"]
)
def test_a_logger_that_can_not_start_is_off(tmp_path, start, caplog, fault):
    logger = start(init=fault)
    wait_for(lambda: logger._off)
    logger.scalars(1, {"loss": 1.5})
    logger.close()
    [message] = messages(caplog)
    assert message.startswith("W&B: ") and message.endswith("The run goes on without it.")
    assert "no network" in message or "No module named 'absent'" in message
    assert "log" not in calls(tmp_path)


def test_a_call_that_fails_is_told_once(tmp_path, start, caplog):
    logger = start(log="if values['step'] < 4: raise ValueError('refused')")
    for step in range(6):
        logger.scalars(step, {"loss": 1.5})
    logger.close()
    assert messages(caplog) == ["W&B: ValueError: refused. The run goes on."]
    assert calls(tmp_path).count('"log"') == 2 and "finish" in calls(tmp_path)


def test_a_logger_that_dies_is_told_once(start, caplog):
    logger = start(log="os._exit(1)")
    logger.scalars(1, {"loss": 1.5})
    wait_for(lambda: logger._off)
    for step in range(5):
        logger.scalars(step, {"loss": 1.5})
    logger.close()
    assert messages(caplog) == ["W&B ended. The run goes on without it."]


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_logger_that_hangs_never_blocks(start, caplog, monkeypatch, place):
    monkeypatch.setattr(remote, "_FLUSH", 0.5)
    logger = start(**{place: "time.sleep(10000)"})
    for step in range(20):
        logger.scalars(step, {"loss": 1.5})
    logger.close()
    assert messages(caplog) == [
        "W&B: not everything was sent in 0.5 s; what is missing is in metrics.jsonl"
    ]


def test_records_are_dropped_when_too_many_wait(start, caplog, monkeypatch):
    monkeypatch.setattr(remote, "_FLUSH", 0.5)
    logger = start(init="time.sleep(10000)")
    for step in range(20_000):
        logger.scalars(step, {"loss": 1.5})
    logger.close()
    slow, unsent, dropped = messages(caplog)
    assert slow.startswith("W&B is too slow: 1000 records wait, and later ones are dropped.")
    assert unsent.startswith("W&B: not everything was sent")
    assert dropped.endswith("records were dropped")


def test_a_logger_outlives_a_killed_run_only_to_send_what_it_has(tmp_path, start):
    logger = start()
    logger.scalars(1, {"loss": 1.5})
    wait_for(lambda: '"log"' in calls(tmp_path))
    assert logger._process.stdin is not None
    logger._process.stdin.close()  # as the system does when the run is killed
    logger._closing = True
    logger._process.wait(120)
    assert calls(tmp_path).endswith('["finish"]\n')


class Broken:
    """A logger of this process that raises."""

    def scalars(self, *_: Any, **__: Any) -> None:
        raise TypeError("broken")

    images = histogram = scalars

    def close(self):
        raise RuntimeError("broken")


def test_a_sink_that_raises_does_not_stop_the_others(tmp_path, caplog):
    sinks = loggers.Guarded({"first": Broken(), "TensorBoard": TensorBoard(tmp_path, 0)})
    for step in range(3):
        sinks.scalars(step, {"loss": 1.5})
    sinks.images(3, "views", np.zeros((1, 4, 6, 3), np.uint8))
    sinks.histogram(4, "similarity", np.arange(5.0))
    sinks.close()
    assert [event.step for event in events(tmp_path)][2:] == [0, 1, 2, 3, 4]
    assert messages(caplog) == ["first: TypeError: broken. The run goes on."]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("by", [KeyboardInterrupt, SystemExit])
def test_a_signal_is_no_failure_of_a_sink(by):
    class Interrupted(Broken):
        def scalars(self, *_: Any, **__: Any) -> None:
            raise by

    with pytest.raises(by):
        loggers.Guarded({"first": Interrupted()}).scalars(1, {})
