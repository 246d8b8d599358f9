"""MoCo v3's projector and predictor, against their definition in NumPy."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.encoder import make_encoder, of_keys
from moco_jax.models.heads import BatchNormMLP
from tests.tiny import tiny_config


def shapes(tree) -> dict[str, tuple[int, ...]]:
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {name: array.shape for name, array in flat.items()}


def normalised(x: np.ndarray, groups: int) -> np.ndarray:
    parts = x.reshape(groups, -1, x.shape[-1])
    parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    return parts.reshape(x.shape)


def expected(params, x, layers: int, groups: int, *, last_norm: bool) -> np.ndarray:
    for layer in range(1, layers + 1):
        x = x @ np.float64(params[f"layer{layer}"]["kernel"])
        if layer < layers:
            norm = params[f"norm{layer}"]
            x = np.maximum(normalised(x, groups) * norm["scale"] + norm["bias"], 0)
        elif last_norm:
            x = normalised(x, groups)
    return x


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("layers", "last_norm"), [(3, True), (2, True), (2, False), (1, True)])
def test_layers_and_batch_norms_alternate(layers, last_norm, groups):
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    head = BatchNormMLP(5, 7, layers, last_norm, groups)
    variables = jax.device_get(head.init(jax.random.key(0), x))
    params = variables["params"]
    for norm in [part for name, part in params.items() if name.startswith("norm")]:
        norm["scale"] = norm["scale"] * 1.5
        norm["bias"] = norm["bias"] + 0.25
    got = head.apply(variables, x, mutable=["batch_stats"])[0]
    wanted = expected(params, np.float64(x), layers, groups, last_norm=last_norm)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_names_and_shapes_are_those_of_the_converters():
    variables = BatchNormMLP(5, 7, 3).init(jax.random.key(0), jnp.zeros((2, 6)))
    assert shapes(variables["params"]) == {
        "layer1/kernel": (6, 7),
        "norm1/scale": (7,),
        "norm1/bias": (7,),
        "layer2/kernel": (7, 7),
        "norm2/scale": (7,),
        "norm2/bias": (7,),
        "layer3/kernel": (7, 5),
    }
    assert shapes(variables["batch_stats"]) == {
        f"norm{n}/{kind}": ((5,) if n == 3 else (7,)) for n in (1, 2, 3) for kind in ("mean", "var")
    }


def test_weights_are_drawn_as_torchs_linear():
    params = BatchNormMLP(128, 512).init(jax.random.key(0), jnp.zeros((2, 256)))["params"]
    for layer, fan_in in (("layer1", 256), ("layer2", 512)):
        kernel = params[layer]["kernel"]
        assert float(jnp.abs(kernel).max()) <= fan_in**-0.5
        assert float(kernel.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)


def test_evaluation_uses_the_running_averages():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    head = BatchNormMLP(5, 7, layers=1)
    variables = head.init(jax.random.key(0), x)
    stats = {"norm1": {"mean": np.full(5, 3.0, "f"), "var": np.full(5, 4.0, "f")}}
    got = head.apply({"params": variables["params"], "batch_stats": stats}, x, train=False)
    y = x @ variables["params"]["layer1"]["kernel"]
    np.testing.assert_allclose(got, (y - 3) / 2, rtol=1e-4, atol=1e-5)


@functools.cache
def v3_encoder():
    changes = {"head": "mlp_bn", "head_layers": 2, "hidden": 24, "predictor_layers": 2}
    config = tiny_config(bn_groups=1, **{f"model__{key}": value for key, value in changes.items()})
    encoder = make_encoder(config)
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    return encoder, jax.jit(encoder.init)(jax.random.key(0), images), images


def test_only_queries_pass_the_predictor():
    encoder, variables, images = v3_encoder()
    assert set(variables["params"]) == {"backbone", "head", "predictor"}
    predictor = shapes(variables["params"]["predictor"])
    assert predictor["layer1/kernel"] == (16, 24)
    assert predictor["layer2/kernel"] == (24, 16)

    features = encoder.apply(variables, images, method="features")
    run = functools.partial(encoder.apply, variables, features, train=False)
    queries, keys = run(method="queries"), run(method="keys")
    parts = {name: tree["head"] for name, tree in variables.items()}
    projected = encoder.head.clone(parent=None, name=None).apply(parts, features, train=False)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(keys, unit(projected), atol=1e-5)
    parts = {name: tree["predictor"] for name, tree in variables.items()}
    predicted = encoder.predictor.clone(parent=None, name=None).apply(parts, projected, train=False)
    np.testing.assert_allclose(queries, unit(predicted), atol=1e-5)


def test_evaluation_and_keys_need_no_predictor():
    encoder, variables, images = v3_encoder()
    less = {name: of_keys(tree) for name, tree in variables.items()}
    for method in ("projection", "features"):
        np.testing.assert_array_equal(
            encoder.apply(less, images, method=method),
            encoder.apply(variables, images, method=method),
        )
    features = encoder.apply(less, images, method="features")
    keys = encoder.apply(less, features, train=False, method="keys")
    np.testing.assert_array_equal(keys, encoder.apply(less, images, method="projection"))
