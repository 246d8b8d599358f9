"""Steps as compiled programs."""

import gc

import jax
import pytest

from moco_jax.training.compilation import abstract_state, compile_step


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_again_after_tracing(fails):
    collects = []

    def step(x):
        collects.append(gc.isenabled())
        if fails:
            raise RuntimeError("broken")
        return x + 1

    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            compile_step(jax.jit(step), 1.0)
    else:
        assert float(compile_step(jax.jit(step), 1.0)(1.0)) == 2.0
    assert collects == [False] and gc.isenabled()


def test_shapes_of_a_state_are_traced_without_collections():
    collects = []

    def init(x):
        collects.append(gc.isenabled())
        return {"weights": x + 1}

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = abstract_state(init, lambda shapes: jax.tree.map(lambda _: sharding, shapes), 1.0)
    assert state["weights"].shape == () and state["weights"].sharding == sharding
    assert collects == [False] and gc.isenabled()
