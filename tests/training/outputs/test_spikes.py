import pytest

from moco_jax.training.outputs.spikes import RECENT, spike


def line(values: list[float], now: float, name: str = "grad_norm_first") -> str:
    return spike(700, {"loss": 100.0, name: now}, [{"loss": 1.0, name: v} for v in values])


def test_spike_is_named_with_its_step_value_and_median():
    assert line([1.0, 3.0, 2.0, 2.5, 1.5], 20.1) == (
        "step 700: a spike of the gradient: grad_norm_first is 20.1, its recent median 2"
    )


@pytest.mark.parametrize(
    ("values", "now"),
    [
        ([2.0] * 10, 20.0),  # ten times the median is no spike yet
        ([2.0] * 4, 1e6),  # too few steps before
        ([], 1e6),
        ([2.0] * 9 + [50.0], 60.0),  # named at the step before
        ([0.0] * 10, 0.0),  # a frozen layer
    ],
)
def test_other_values_are_no_spike(values, now):
    assert line(values, now) == ""


def test_median_ignores_earlier_spikes():
    assert line([2.0] * (RECENT - 10) + [500.0] * 9 + [2.0], 40.0)


def test_all_norms_stand_in_one_line():
    recent = [{"grad_norm": 1.0, "grad_norm_last": 0.1, "param_norm": 1.0}] * 5
    text = spike(3, {"grad_norm": 11.0, "grad_norm_last": 2.0, "param_norm": 99.0}, recent)
    assert text == (
        "step 3: a spike of the gradient: grad_norm is 11, its recent median 1; "
        "grad_norm_last is 2, its recent median 0.1"
    )
