import functools
import re

import jax
import numpy as np
import pytest

from moco_jax.models.encoder import make_encoder
from moco_jax.models.resnet import ResNet
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.method import make_method
from tests.tiny import tiny_config

STEPS = 10
IMAGES = 160  # of which a step sees 64
SIDE = 16  # of the views


@functools.cache
def views() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ten steps' pairs of views: noise around a pattern that both share."""
    rng = np.random.default_rng(0)

    def pair():
        base = rng.normal(size=(64, SIDE, SIDE, 3))
        return tuple((base + 0.3 * rng.normal(size=base.shape)).astype("float32") for _ in "qk")

    return [pair() for _ in range(STEPS)]


def prepare(devices: int, **changes):
    """Returns the state, the compiled step and the layout; the state is f64 if `dtype` is."""
    recipe = {"batch_size": 64, "queue_size": 256, "lr": 0.03, "lr_batch": 256}
    config = tiny_config(**(recipe | changes))
    layout = make_layout(jax.devices()[:devices], **config.mesh)
    method = make_method(config, layout, IMAGES)
    # Created on one device and moved: each number of devices would compile it anew.
    one = make_method(config, make_layout(jax.devices()[:1]), IMAGES)
    state = jax.device_get(one.create_state())
    if config.dtype == "float64":
        state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)
    state = jax.device_put(state, method.state_shardings(one.abstract_state()))
    return state, jax.jit(method.train_step(), donate_argnums=0), layout


def indices(step: int) -> np.ndarray:
    """Returns which images a step's views are of, i32[64]: each is seen again after 2.5 steps."""
    return (np.arange(64, dtype=np.int32) + 64 * step) % IMAGES


def losses(devices: int, *, steps: int = 4, dtype: str = "float64", **changes) -> list[float]:
    """Returns the losses of the first steps.

    In float32 the order of a sum depends on the processor, and may turn a ReLU on or off. Later
    steps amplify that. In float64 only errors of the method are seen.
    """
    wide = dtype == "float64"
    with jax.enable_x64(wide):
        state, step, layout = prepare(devices, dtype=dtype, **changes)
        result = []
        for number, pair in enumerate(views()[:steps]):
            pair = tuple(x.astype("float64" if wide else "float32") for x in pair)
            state, metrics = step(state, *layout.put_batch((pair, indices(number))))
            result.append(float(metrics["loss"]))
        assert int(state.step) == steps
    return result


def agree(found: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@functools.cache
def one_device(**changes) -> list[float]:
    return losses(1, **changes)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_losses_do_not_depend_on_the_number_of_devices(devices):
    agree(losses(devices), one_device())


def test_split_parameters_give_the_same_losses():
    state, _, layout = prepare(8, mesh__fsdp=4)
    kernel = state.params["backbone"]["stage4_block1"]["Conv_1"]["kernel"]
    assert kernel.shape == (3, 3, 64, 64) and kernel.sharding.shard_shape(kernel.shape)[2] == 16
    for like in (state.key_params, state.opt_state[1].trace):
        assert like["backbone"]["stage4_block1"]["Conv_1"]["kernel"].sharding == kernel.sharding
    assert state.params["backbone"]["stem_conv"]["kernel"].sharding == layout.replicated  # small
    agree(losses(8, mesh__fsdp=4), one_device())


def test_what_is_computed_again_gives_the_same_losses():
    state, step, _ = prepare(1, remat=True)
    assert "remat" in str(step.trace(state, views()[0], indices(0)).jaxpr)
    agree(losses(1, remat=True), one_device())


@pytest.mark.parametrize(("devices", "parts"), [(1, 2), (2, 4), (8, 2)])
def test_parts_of_a_batch_give_the_same_losses(devices, parts):
    agree(losses(devices, microbatches=parts), one_device())


def test_fewer_groups_than_devices_and_both_directions():
    changes = dict(bn_groups=4, symmetric=True)
    agree(losses(8, **changes), one_device(**changes))


def test_one_step_follows_the_algorithm():
    """EMA before the keys, the loss on the queue as it was, the update after both."""
    config = tiny_config(batch_size=64, queue_size=256)
    before, step, layout = prepare(1)
    before = jax.device_get(before)
    # Make the encoders differ, as after some steps.
    before = before.replace(key_params=jax.tree.map(lambda x: x * 1.1 + 0.01, before.key_params))
    query_view, key_view = views()[0]
    after, metrics = step(
        jax.device_put(before, layout.replicated), (query_view, key_view), indices(0)
    )

    expected_key_params = jax.tree.map(
        lambda k, q: 0.9 * k + 0.1 * q, before.key_params, before.params
    )
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7),
        jax.device_get(after.key_params),
        expected_key_params,
    )

    # The keys, encoded apart: key groups are columns of the [G, B/G] grid of images.
    encoder = make_encoder(config)
    encode = lambda params, stats, x: encoder.apply(  # noqa: E731
        {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
    )[0]
    order = np.arange(64).reshape(8, 8).T.reshape(-1)
    mixed = encode(expected_key_params, before.key_batch_stats, key_view[order])
    keys = np.empty_like(mixed)
    keys[order] = mixed
    queries = np.asarray(encode(before.params, before.batch_stats, query_view))
    ring = before.dictionary.reshape(-1, config.model.dim)
    logits = np.concatenate([(queries * keys).sum(1)[:, None], queries @ ring.T], 1) / 0.2
    loss = (np.log(np.exp(logits).sum(1)) - logits[:, 0]).mean()
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)

    np.testing.assert_allclose(after.dictionary[0], keys, atol=1e-4)
    np.testing.assert_array_equal(after.dictionary[1:], before.dictionary[1:])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params, before.params)
    assert all(value > 0 for value in jax.tree.leaves(moved))


def test_the_key_encoder_starts_as_the_query_encoder():
    state, _, _ = prepare(1)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.key_params)
    assert state.dictionary.shape == (4, 64, 16)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_encoder_is_traced_once_for_queries_and_keys(symmetric, monkeypatch):
    config = tiny_config(batch_size=64, queue_size=256, symmetric=symmetric)
    layout = make_layout(jax.devices()[:1])
    method = make_method(config, layout, IMAGES)
    state, count = method.abstract_state(), []
    maps = ResNet.maps
    monkeypatch.setattr(ResNet, "maps", lambda *a, **k: (count.append(1), maps(*a, **k))[1])
    jax.eval_shape(method.train_step(), state, *layout.put_batch((views()[0], indices(0))))
    assert len(count) == 1


def test_bfloat16_computes_the_same_within_its_precision():
    np.testing.assert_allclose(losses(1, dtype="bfloat16", steps=3), one_device()[:3], rtol=0.05)


@functools.cache
def collectives(**changes) -> list[tuple[str, str]]:
    """(operation, its operands' and results' shapes) of the step compiled for 8 devices."""
    state, step, layout = prepare(8, **changes)
    text = step.lower(state, *layout.put_batch((views()[0], indices(0)))).compile().as_text()
    names = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({names})(?:-start)?\(", text)
    assert found
    return [(name, shape) for shape, name in found]


def elements(shape: str) -> int:
    """The elements of the largest array in an HLO shape."""
    sizes = re.findall(r"\[([\d,]*)\]", shape)
    return max(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)


def test_nothing_moves_the_queue_or_the_images_but_the_shuffle():
    # A long queue, so that nothing else comes near its size on a device.
    found = collectives(queue_size=64 * 512)
    images, queue = 64 * SIDE * SIDE * 3, 64 * 512 * config_dim()
    for name, shape in found:
        assert elements(shape) < queue // 8, (name, shape)
        if name not in ("all-to-all", "all-reduce"):
            assert elements(shape) < images, (name, shape)
        elif name == "all-reduce":  # gradients, and numbers per query; nothing of image shape
            assert f"{SIDE},{SIDE},3]" not in shape, shape
    moved = [
        shape for name, shape in found if name == "all-to-all" and f"{SIDE},{SIDE},3]" in shape
    ]
    assert len(moved) == 1  # the key view's images, once
    gathered = [elements(shape) for name, shape in found if name == "all-gather"]
    assert max(gathered) == 64 * config_dim()  # the queries


def test_without_batch_norm_the_images_stay_on_their_devices():
    vit = {"model__name": "vit_tiny", "model__stem": "patch", "model__patch": 8, "model__depth": 1}
    assert "all-to-all" not in [name for name, _ in collectives(**vit)]


def config_dim() -> int:
    return tiny_config().model.dim


def test_statistics_of_groups_stay_on_their_device():
    reduced = [shape for name, shape in collectives(queue_size=64 * 512) if name == "all-reduce"]
    # The look-up's maximum, sum and gradient, and the parameters' gradients; no batch statistic.
    assert len(reduced) <= 6
