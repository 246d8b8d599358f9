"""The checks of compiled programs find what is planted; every experiment has its programs."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import configs
from moco_jax.main import TASKS
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.hardware import CHIPS
from tests import test_configs
from tests.compile import checks, experiments, programs
from tests.supervised import test_configs as test_supervised_configs

IMAGES = (64, 32, 32, 3)


def compile_small(function, **options):
    """Returns a compiled program of images [64, 32, 32, 3] that lie on 8 devices."""
    layout = make_layout(jax.devices()[:8])
    images = jax.ShapeDtypeStruct(IMAGES, jnp.float32, sharding=layout.sharded())
    return jax.jit(functools.partial(function, layout), **options).lower(images).compile()


def faults(compiled, shuffled=8.0):
    text = compiled.as_text()
    return list(checks.faults_of_text(text, shuffled=shuffled, view=32, canvas=64))


def called(layout, images):
    jax.debug.callback(lambda x: None, images.sum())
    return images * 2


def asked(layout, images):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return images * jax.pure_callback(lambda x: np.float32(x), shape, images.sum())


@pytest.mark.parametrize("function", [called, asked])
def test_a_call_of_the_host_is_found(function):
    assert any("calls the host" in fault for fault in faults(compile_small(function)))


def test_a_move_of_all_images_is_found():
    found = faults(compile_small(lambda layout, images: layout.replicate(images) + 1))
    assert len(found) == 1 and "moves images: all-gather of f32[64,32,32,3]" in found[0]
    assert faults(compile_small(lambda layout, images: images + 1)) == []


def test_a_shuffle_is_allowed_only_where_it_is_meant():
    def shuffle(layout, images):
        parts = images.reshape(8, 8, *images.shape[1:])
        return layout.shard(jnp.swapaxes(layout.shard(parts), 0, 1).reshape(images.shape))

    compiled = compile_small(shuffle)
    assert faults(compiled) == []
    assert any("moves images" in fault for fault in faults(compiled, shuffled=0.0))


def test_a_copy_of_all_resident_images_is_found():
    rows = jax.ShapeDtypeStruct((5000, 48), jnp.uint8)
    some = jax.ShapeDtypeStruct((16,), jnp.int32)
    sides = {"shuffled": 8.0, "view": 4, "canvas": 4, "resident": 5000 * 48}
    take = jax.jit(lambda rows, some: jnp.take(rows, some, axis=0))
    copy = jax.jit(lambda rows, some: jnp.sort(rows, axis=0)[some])
    for function, copies in ((take, False), (copy, True)):
        text = function.lower(rows, some).compile().as_text()
        found = list(checks.faults_of_text(text, **sides))
        assert any("copies all images" in fault for fault in found) == copies


def test_float64_is_found():
    with jax.enable_x64(True):
        compiled = jax.jit(lambda x: x * 2).lower(np.ones(3)).compile()
    assert faults(compiled) == ["has float64"]


@pytest.mark.parametrize("name", ["bf,fo->bo", "bhwf,fo->bhwo"])
def test_a_float32_product_is_found(name):
    shape = (2,) * (len(name.split(",")[0]) - 1) + (8,)
    product = jax.jit(lambda x, w: jnp.einsum(name, x, w))

    def found(x, w):
        return checks.float32_products(product.lower(x, w).as_text(debug_info=True))

    x, w = jnp.ones(shape), jnp.ones((8, 4))
    assert len(found(x, w)) == 1 and name in found(x, w)[0]
    assert found(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)) == []


def test_a_float32_convolution_is_found():
    kernel, images = jnp.ones((3, 3, 3, 8)), jnp.ones((2, 8, 8, 3))
    product = jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"))
    images, kernel = jnp.moveaxis(images, 3, 1), jnp.transpose(kernel, (3, 2, 0, 1))
    for dtype, count in ((jnp.float32, 1), (jnp.bfloat16, 0)):
        lowered = product.lower(images.astype(dtype), kernel.astype(dtype))
        assert len(checks.float32_products(lowered.as_text(debug_info=True))) == count


def test_similarities_may_be_float32():
    product = jax.jit(lambda q, k: jnp.einsum("bd,kd->bk", q, k))
    lowered = product.lower(jnp.ones((4, 8)), jnp.ones((6, 8)))
    assert "dot_general" in lowered.as_text()
    assert checks.float32_products(lowered.as_text(debug_info=True)) == []


def test_a_state_that_is_not_reused_and_one_that_does_not_fit_are_found():
    layout, chip = make_layout(jax.devices()[:8]), CHIPS["v5e"]
    state = jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=layout.replicated)
    step = lambda x: x + 1  # noqa: E731
    reused, copied = (
        jax.jit(step, donate_argnums=given).lower(state).compile().memory_analysis()
        for given in ((0,), ())
    )
    assert list(checks.faults_of_memory(reused, state, chip)) == []
    assert list(checks.faults_of_memory(copied, {}, chip)) == []
    [fault] = checks.faults_of_memory(copied, state, chip)
    assert fault == "0 of 4000000 bytes of the state are reused"
    assert checks.used_bytes(copied) - checks.used_bytes(reused) >= 4_000_000
    large = types.SimpleNamespace(
        argument_size_in_bytes=16 * 2**30,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
        temp_size_in_bytes=0,
        generated_code_size_in_bytes=0,
    )
    [fault] = checks.faults_of_memory(large, {}, chip)
    assert fault.startswith("it needs 17179869184 of 16911433728")


def test_programs_that_differ_in_a_rate_are_the_same():
    def text(rate, shape=(4,)):
        return jax.jit(lambda x: x * jnp.float32(rate) + 1).lower(jnp.ones(shape)).as_text()

    assert text(0.1) != text(0.3)
    assert checks.fingerprint(text(0.1)) == checks.fingerprint(text(0.3))
    assert checks.fingerprint(text(0.1)) != checks.fingerprint(text(0.1, (5,)))
    assert checks.fingerprint(text(0.1)) != checks.fingerprint(text(1.0))
    assert checks.fingerprint(text(0.1)) != checks.fingerprint(text(0.0))


def test_every_task_has_its_programs_and_every_file_its_experiments():
    assert programs.PROGRAMS.keys() == TASKS.keys()
    by_task = experiments.by_task()
    assert by_task.keys() == TASKS.keys()
    found = {name for names in by_task.values() for name in names}
    assert {name.partition(":")[0] for name in found} == set(configs.names())
    listed = (*test_configs.EXPERIMENTS, *test_supervised_configs.EXPERIMENTS)
    assert {":".join(parts) for parts in listed} <= found


def test_a_new_experiment_is_found(tmp_path, monkeypatch):
    code = "VARIANTS = {'a': {}, 'b': {}}\ndef get_config(variant: str = 'a'): pass\n"
    (tmp_path / "extra_for_a_test.py").write_text(code)
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    monkeypatch.setattr(configs, "__path__", [str(tmp_path)])
    assert experiments.names() == ["extra_for_a_test:a", "extra_for_a_test:b"]


@pytest.mark.parametrize("name", ["digits_linear", "digits_finetune:mae"])
def test_a_downstream_program_is_that_of_its_encoder(name):
    layout = make_layout(jax.devices()[:4])
    program = programs.PROGRAMS[experiments.config(name).task]["step"](name, layout)
    after, metrics = jax.eval_shape(program.function, *program.arguments)
    assert jax.tree.structure(after) == jax.tree.structure(program.state)
    assert program.config.data.image_size == 16 and program.config.dtype == "bfloat16"
    assert {"loss", "train_top1", "stop"} <= set(metrics)
