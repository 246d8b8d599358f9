import json

from moco_jax.training.metrics import MetricsLog, duration


def opened(folder, **changes) -> MetricsLog:
    log = MetricsLog(folder, **changes)
    log.open()
    return log


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

    dropped = (tmp_path / "metrics.dropped.jsonl").read_text()
    assert json.loads(dropped) == {"step": 2, "loss": 1.5}


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


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
