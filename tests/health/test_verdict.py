"""The verdict on logs made up for each kind of fault; benchmarks/health.py has real runs."""

import pytest

from moco_jax.health.verdict import verdict

CHANCE = 6.0


def training(step, **changes):
    line = {"loss": 4.0, "chance_loss": CHANCE, "accuracy": 40.0, "data_wait_percent": 3.0}
    return {"step": step, **line, **changes}


def evaluation(step, **changes):
    line = {"knn_top1": 50.0, "health/rank": 60.0, "health/spread": 0.6, "health/key_spread": 0.8}
    return {
        "step": step,
        **line,
        **{k.replace("health_", "health/"): v for k, v in changes.items()},
    }


START = [evaluation(0, knn_top1=20.0)]


def names(lines) -> list[str]:
    return [found.name for found in verdict(lines)]


def test_a_run_that_works_is_healthy_with_its_numbers():
    lines = [*START, training(50), training(100, loss=3.0), evaluation(100)]
    assert verdict(lines) == [("healthy", "kNN 50.00%, 20.00% at first, rank 60.0, spread 0.60")]


def test_without_labels_it_is_healthy_by_rank_and_spread():
    lines = [{**line} for line in [*START, training(50), evaluation(100)]]
    for line in lines:
        line.pop("knn_top1", None)
    assert verdict(lines) == [("healthy", "rank 60.0, spread 0.60")]


@pytest.mark.parametrize("lines", [[], START, [training(50)], [*START, training(50)]])
def test_without_training_or_evaluation_there_is_none(lines):
    assert verdict(lines) == []


def test_a_loss_far_above_guessing_is_divergence():
    lines = [*START, training(50), training(100, loss=9.0), training(150, loss=8.0)]
    found = verdict([*lines, evaluation(150)])
    assert found[0] == ("diverging", "loss 8.000, guessing has 6.00")


def test_a_loss_that_rises_between_evaluations_is_divergence():
    lines = [*START, training(50, loss=1.0), evaluation(60), training(100, loss=2.0)]
    assert names([*lines, evaluation(120)]) == ["diverging"]
    # A queue of random keys makes the first loss low.
    assert names([*START, training(10, loss=1.0), training(50), evaluation(60)]) == ["healthy"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"health_spread": 0.01}, "features"), ({"health_key_spread": 0.0}, "keys")],
)
def test_equal_features_or_keys_are_collapse(changes, what):
    found = verdict([*START, training(50), evaluation(100, **changes)])
    assert found[0].name == "collapsed" and found[0].reason.startswith(f"{what} of different")


def test_a_rank_far_below_that_at_first_is_partial_collapse():
    found = verdict([*START, training(50), evaluation(100, health_rank=1.1)])
    assert found[0] == ("partly collapsed", "rank 1.1, at first 60.0")


def test_a_solved_pretext_with_falling_knn_is_cheating():
    lines = [*START, training(50), evaluation(100), training(150, accuracy=99.5)]
    found = verdict([*lines, evaluation(200, knn_top1=44.0)])
    assert found[0] == ("cheating", "pretext accuracy 99.5%, kNN 6.00 points below its best")
    assert names([*lines, evaluation(200, knn_top1=55.0)]) == ["healthy"]


@pytest.mark.parametrize(
    ("line", "knn", "reason"),
    [
        (training(50, loss=5.95), 50.0, "loss 5.950, guessing has 6.00"),
        (training(50), 21.0, "kNN 21.00%, 20.00% at first"),
    ],
)
def test_a_loss_at_chance_or_a_knn_as_at_first_is_not_learning_yet(line, knn, reason):
    found = verdict([*START, line, evaluation(100, knn_top1=knn)])
    assert found[0] == ("not learning yet", reason)


def test_a_starved_run_has_a_second_verdict_on_its_features():
    lines = [*START, training(50, data_wait_percent=90.0), evaluation(100)]
    assert names(lines) == ["starved of data", "healthy"]
    assert names([*lines[:-1], evaluation(100, health_spread=0.0)]) == [
        "collapsed", "starved of data",
    ]  # fmt: skip


def test_training_after_the_newest_evaluation_does_not_count():
    lines = [*START, training(50), evaluation(100), training(150, loss=9.0)]
    assert names(lines) == ["healthy"]


def test_an_evaluation_between_two_log_lines_has_the_last_line_before_it():
    lines = [*START, training(50), evaluation(100), evaluation(110)]
    assert names(lines) == ["healthy"]
    assert names([*START, training(50, loss=9.0), evaluation(100), evaluation(110)]) == [
        "diverging"
    ]
