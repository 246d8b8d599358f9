"""The options that programs for a CPU are compiled with."""

import pytest

from moco_jax.parallel import mesh


@pytest.mark.parametrize(
    ("flags", "level"), [("", "2"), ("--xla_backend_optimization_level=0", None)]
)
def test_a_level_of_optimisation_that_the_user_gave_stays(flags, level, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert mesh._cpu_options.__wrapped__().get("xla_backend_optimization_level") == level
