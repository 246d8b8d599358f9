"""TensorBoard files: scalars as ever, images and histograms."""

import io
import time

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from tests.training.outputs.test_metrics_log import events, opened


def test_scalars_are_the_bytes_that_tensorboardx_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 12.5)
    log = opened(tmp_path, start_step=4)
    log.write(5, {"loss": 1.5, "top1/lr=1e+38": 2.0})
    log.close()
    expected = tmp_path / "expected"
    writer = RecordWriter(str(expected))
    start = SessionLog(status=SessionLog.START)
    values = [*scalar("loss", 1.5).value, *scalar("top1/lr=1e+38", 2.0).value]
    for event in (
        Event(wall_time=12.5, file_version="brain.Event:2"),
        Event(wall_time=12.5, step=5, session_log=start),
        Event(wall_time=12.5, step=5, summary=Summary(value=values)),
    ):
        writer.write(event.SerializeToString())
    writer.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    assert file.read_bytes() == expected.read_bytes()


def test_an_image_is_stored_whole(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3)).astype(np.uint8)
    log = opened(tmp_path, start_step=0)
    log.images(0, "views", images)
    log.images(0, "grid", images[:1])
    log.close()
    *_, several, one = events(tmp_path)
    found = [*several.summary.value, *one.summary.value]
    assert [value.tag for value in found] == ["views/0", "views/1", "grid"]
    for value, image in zip(found, (*images, images[0]), strict=True):
        assert (value.image.height, value.image.width, value.image.colorspace) == (3, 5, 3)
        decoded = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        np.testing.assert_array_equal(decoded, image)
    assert not (tmp_path / "metrics.jsonl").exists()  # of scalars alone


def test_a_histogram_has_the_values_that_are_finite(tmp_path):
    log = opened(tmp_path, start_step=0)
    log.histogram(3, "similarity", np.array([[1.0, 2.0], [np.nan, np.inf]], np.float32))
    log.histogram(4, "similarity", np.array([np.nan]))
    log.histogram(5, "similarity", np.full(7, 0.25))
    log.close()
    *_, first, second = events(tmp_path)
    [value] = first.summary.value
    assert first.step == 3 and value.tag == "similarity"
    assert (value.histo.num, value.histo.min, value.histo.max, value.histo.sum) == (2, 1, 2, 3)
    assert sum(value.histo.bucket) == 2
    assert second.step == 5 and second.summary.value[0].histo.num == 7
