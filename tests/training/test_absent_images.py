"""A run whose bucket does not answer."""

import signal
from dataclasses import fields

import pytest

from moco_jax.buckets import client, objects
from moco_jax.training import absent_images
from moco_jax.training.interruption import Interruption


class Stop(Exception):
    pass


@pytest.fixture
def gone(monkeypatch):
    """A bucket whose server is gone after its first answer."""
    made = objects.Bucket("s3://b", client.Client(*[lambda *_: None] * len(fields(client.Client))))
    made.ask("s3://b/x", lambda: None)
    monkeypatch.setattr(objects, "_SLICE", 0.01)

    def request():
        raise client.Problem(client.Kind.PASSING, "gone")

    return lambda: made.ask("s3://b/x", request)


def test_a_signal_ends_the_wait_and_the_state_is_saved(gone):
    asked, saved = Interruption(always_waits=True), []

    def request():
        asked.note(signal.SIGINT)
        gone()

    with pytest.raises(Stop, match="SIGINT"):
        stopped = lambda by: Stop(signal.Signals(by).name)  # noqa: E731
        with absent_images.saving(asked, lambda: saved.append(1), stopped):
            request()
    assert saved == [1]


def test_the_state_is_saved_when_patience_ends(gone, monkeypatch):
    monkeypatch.setattr(objects, "PATIENCE", 0.0)
    saved = []
    with pytest.raises(objects.BucketError, match="s3://b does not answer"):
        with absent_images.saving(Interruption(), lambda: saved.append(1), lambda by: Stop()):
            gone()
    assert saved == [1]


def test_several_processes_do_not_save(gone, monkeypatch):
    monkeypatch.setattr(objects, "PATIENCE", 0.0)
    monkeypatch.setattr(absent_images.jax, "process_count", lambda: 2)
    with pytest.raises(objects.BucketError):
        with absent_images.saving(Interruption(), pytest.fail, lambda by: Stop()):
            gone()
