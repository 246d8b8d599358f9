"""metrics.jsonl and TensorBoard files: resumed, repaired, and on a disk that is full."""

import json
import logging
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from moco_jax.training.outputs.console import Console, duration
from moco_jax.training.outputs.metrics_log import MetricsLog


def opened(folder, **changes) -> MetricsLog:
    log = MetricsLog(folder, **changes)
    log.open()
    return log


def events(folder) -> list[Event]:
    """Returns the events of all TensorBoard files of a workdir."""
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    log = opened(tmp_path, start_step=1)
    log.write(2, {"loss": 1.4})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.4},
    ]
    dropped = (tmp_path / "metrics.dropped.jsonl").read_text().splitlines()
    assert dropped == ['{"step": 2, "loss": 1.5}', '{"step": 3, "lo']


GOOD = [b'{"step": 1, "loss": 2.50}', b'{"loss":1e-3, "step":2}', b'{"step": 3, "l\xc3\xb6ss": 1}']


@pytest.mark.parametrize(
    "broken",
    [
        b"\xff\xfe broken",
        b'{"step": 2, "loss": "\xe9"}',
        b'{"step": 2, "lo',
        b'{"loss": 1.0}',
        b'{"step": 2, "loss": NaN}',
        b'{"step": 2, "loss": Infinity}',
        b'{"step": 2, "loss": 1e999}',
        b'{"step": 1' + b"0" * 400 + b"}",
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": "2"}',
        b'{"step": null}',
        b'{"step": 2.5, "loss": 1}',
        b'{"step": 2, "loss": [1]}',
        b'{"step": 2, "loss": "1"}',
        b'[{"step": 2}]',
        b"2",
        b"[" * 100_000,
        b'{"step":' * 50_000,
        b"\x00" * 4096,
        b"step,loss",
    ],
)
@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_log_with_foreign_bytes_is_repaired(tmp_path, caplog, broken, position):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*GOOD[:position], broken, *GOOD[position:], b""]))
    with caplog.at_level(logging.WARNING):
        opened(tmp_path, start_step=3).close()
    assert path.read_bytes() == b"\n".join([*GOOD, b""])
    assert (tmp_path / "metrics.dropped.jsonl").read_bytes() == broken + b"\n"
    [record] = caplog.records
    assert "metrics.jsonl that can't be read: 1, such as" in record.getMessage()


def test_a_line_after_a_block_of_zeros_is_kept(tmp_path):
    """A crash leaves such a block at the end of a file; the next start appends to it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD[0] + b"\n" + b"\x00" * 512 + GOOD[1] + b"\n")
    opened(tmp_path, start_step=3).close()
    assert path.read_bytes().split() == b"\n".join(GOOD[:2]).split()
    assert not (tmp_path / "metrics.dropped.jsonl").exists()


def test_a_run_that_starts_anew_measures_step_0_again(tmp_path):
    for knn in (10.0, 11.0):
        log = opened(tmp_path, start_step=0)
        assert not log.evaluated
        log.write(0, {"knn_top1": knn})
        log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "knn_top1": 11.0}\n'


def test_it_knows_whether_its_step_was_evaluated(tmp_path):
    log = opened(tmp_path, start_step=0)
    log.write(5, {"loss": 1.0})
    log.write(5, {"knn_top1": 50.0})
    log.write(6, {"loss": 1.0})
    log.close()
    for step, expected in ((6, False), (5, True)):
        log = opened(tmp_path, start_step=step)
        assert log.evaluated is expected
        log.close()


def test_tensorboard_gets_the_same_numbers_and_where_a_run_resumed(tmp_path):
    log = opened(tmp_path, start_step=4)
    log.write(5, {"loss": 1.5, "top1/lr=1e+38": 2.0})
    log.close()
    version, start, point = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == 1
    assert point.step == 5
    tags = {value.tag: value.simple_value for value in point.summary.value}
    assert tags == {"loss": 1.5, "top1/lr_1e_38": 2.0}


def test_output_that_can_not_be_written_does_not_end_a_run(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    console = Console(10, 5)
    console.say("done")
    speed = {"images_per_second": 1.0, "data_wait_percent": 0.0, "seconds_per_step": 1.0}
    console.progress(1, {"lr": 0.1, **speed}, "loss 1")


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
