import math

import jax
import jax.numpy as jnp
import pytest

from moco_jax.models.layers import convolution
from moco_jax.models.resnet import padded_conv
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import forecast, program
from tests.plan.examples import GIB, example, light_config


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory on HBM, the total memory required for HLO temporaries (17.50G) exceeds "
        "available HBM (15.75G).",
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.50G of "
        "15.75G hbm. Exceeded hbm capacity by 1.75G.",
    ],
)
def test_a_refusal_is_parsed(message):
    refused = program._refused_program(f"RESOURCE_EXHAUSTED: {message}", GIB, GIB // 2, 9.0, "tpu")
    assert refused.temporary_bytes == 16 * GIB
    assert refused.refusal == "needs 17.50G of 15.75G"
    row = forecast.table([example(**vars(refused))])
    assert "NO" in row and "?" in row


def small_step(layout) -> tuple:
    """Returns a jitted step and its abstract state and batch; a sum over devices of products."""
    state = jax.ShapeDtypeStruct((100, 100), jnp.float32, sharding=layout.replicated)
    batch = jax.ShapeDtypeStruct((64, 100), jnp.float32, sharding=layout.sharded())
    step = jax.jit(lambda state, batch: state - layout.replicate(batch.T @ batch), donate_argnums=0)
    return step, state, batch


def test_memory_flops_and_collectives_of_a_small_step():
    found = program.compile_program(*small_step(make_layout(jax.devices()[:8])))
    assert (found.state_bytes, found.batch_bytes) == (100 * 100 * 4, 8 * 100 * 4)
    assert found.flops == pytest.approx(2 * 8 * 100 * 100, rel=0.2)
    assert [(c.kind, c.bytes) for c in found.collectives] == [("all-reduce", 100 * 100 * 4)]
    assert found.temporary_bytes < 3 * 100 * 100 * 4


def test_flops_are_counted_before_compilation(monkeypatch):
    layout = make_layout(jax.devices()[:8])
    monkeypatch.setattr(program, "abstract_step", lambda *_: small_step(layout))
    counted = program.counted_flops(light_config(), layout, 1000)
    assert counted == pytest.approx(2 * 8 * 100 * 100, rel=0.2)


def test_flops_of_micro_batches_are_those_of_all_parts_and_of_one_more_forward_pass():
    layout = make_layout(jax.devices()[:1])
    whole, parts = (
        program.counted_flops(light_config(microbatches=parts), layout, 1000) for parts in (1, 4)
    )
    assert 1.05 * whole < parts < 1.3 * whole  # 5 passes in place of 4, beside those of the crops


def test_flops_are_those_of_lax_convolutions(monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", 0)  # Winograd would have 4/9 of the products
    layout = make_layout(jax.devices()[:1])
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32, sharding=layout.replicated)
    images = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.float32, sharding=layout.sharded())
    conv = padded_conv(64, 3)
    step = jax.jit(lambda kernel, x: conv.apply({"params": {"kernel": kernel}}, x))
    found = program.compile_program(step, kernel, images)
    assert found.flops > 0.8 * 2 * 2 * 16 * 16 * 9 * 64 * 64


def test_the_step_is_the_train_step():
    config = light_config()
    layout = make_layout(jax.devices()[:8], fsdp=2)
    step, state, arrays, batch, notices = program.abstract_step(config, layout, 1000)
    assert batch["images"].shape == (32, 16, 16, 3) and not arrays
    after, metrics = jax.eval_shape(step, state, arrays, batch, notices)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss", "grad_norm", "stop"} <= set(metrics)
    kernel = state.params["backbone"]["stage4_block1"]["Conv_0"]["kernel"]
    split = kernel.sharding.shard_shape(kernel.shape)
    assert 2 * math.prod(split) == kernel.size  # split over fsdp


@pytest.mark.slow
def test_a_step_compiled_for_cpus():
    config, layout = light_config(), make_layout(jax.devices()[:8])
    step, state, *others = program.abstract_step(config, layout, 1000)
    found = program.compile_program(step, state, *others)
    assert found.platform == "cpu"
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    reduced = sum(c.bytes for c in found.collectives if c.kind == "all-reduce")
    assert 4 * parameters <= reduced < 5 * parameters
    # 4 of 32 images with size, index and mark; and the notices
    assert found.batch_bytes == 4 * (16 * 16 * 3 + 2 * 4 + 4 + 1) + 2 * 4
    assert found.flops > 0 and found.temporary_bytes > 0
    assert program.counted_flops(config, layout, 1000) == pytest.approx(found.flops, rel=0.2)


def test_flops_of_attention_are_those_of_all_heads():
    vit = {"model__name": "vit_tiny", "model__stem": "patch", "model__patch": 1}
    vit |= {"model__width": 0.25, "model__depth": 1, "batch_size": 4}
    layout = make_layout(jax.devices()[:1])
    one, three = (
        program.counted_flops(light_config(**vit, model__heads=heads), layout, 1000)
        for heads in (1, 3)
    )
    assert three == pytest.approx(one, rel=0.05)
