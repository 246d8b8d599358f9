"""Vision transformers against NumPy, published sizes and the initialisation of MoCo v3."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.positions import sincos
from moco_jax.models.vit import ViT, vit
from moco_jax.parallel.mesh import make_layout

IMAGES = np.random.default_rng(0).normal(size=(8, 8, 12, 3))


def network(**options) -> ViT:
    return ViT(**(dict(dim=16, depth=3, heads=2, patch=4) | options))


@functools.cache
def drawn(**options):
    """Returns variables whose arrays all are random, float64."""
    shapes = jax.eval_shape(
        functools.partial(network(**options).init, train=False), jax.random.key(0), IMAGES
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.abs(0.2 * rng.normal(size=x.shape)) + 0.05, shapes)


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def positions(rows: int, columns: int, dim: int) -> np.ndarray:
    """Returns MoCo v3's formula: sin and cos of the row, of the column; 0 for the class token."""
    quarter = dim // 4
    found = np.zeros((1 + rows * columns, dim))
    for i in range(rows):
        for j in range(columns):
            for k in range(quarter):
                w = 1 / 10000 ** (k / quarter)
                entries = (math.sin(i * w), math.cos(i * w), math.sin(j * w), math.cos(j * w))
                found[1 + i * columns + j, k::quarter] = entries
    return found


def in_numpy(params, images: np.ndarray, heads: int, patch: int, pool: str) -> np.ndarray:
    """Returns the features, computed image by image and head by head."""
    gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    embed = params["patch_embed"]
    features = []
    for image in images:
        tokens = [params["cls_token"][0, 0]]
        for i in range(rows):
            for j in range(columns):
                part = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                tokens.append((part[..., None] * embed["kernel"]).sum((0, 1, 2)) + embed["bias"])
        dim = len(tokens[0])
        x = np.stack(tokens) + positions(rows, columns, dim)
        for block in (params[name] for name in sorted(params) if name.startswith("block")):
            q, k, v = np.split(linear(norm(x, block["norm1"]), block["qkv"]), 3, axis=1)
            out = []
            for h in np.split(np.arange(dim), heads):
                scores = np.exp(q[:, h] @ k[:, h].T / math.sqrt(len(h)))
                out.append(scores / scores.sum(1, keepdims=True) @ v[:, h])
            x = x + linear(np.concatenate(out, axis=1), block["proj"])
            x = x + linear(gelu(linear(norm(x, block["norm2"]), block["fc1"])), block["fc2"])
        pooled = x[0] if pool == "cls" else x[1:].mean(0)
        features.append(norm(pooled[None], params["norm"])[0])
    return np.stack(features)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_those_of_numpy(pool):
    with jax.enable_x64(True):
        found = network(pool=pool, dtype=jnp.float64).apply(drawn(), IMAGES, train=True)
    assert found.dtype == np.float64
    expected = in_numpy(drawn()["params"], IMAGES, heads=2, patch=4, pool=pool)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (2, 5)])
def test_the_first_half_of_a_position_is_the_row(rows, columns):
    np.testing.assert_allclose(
        sincos(rows, columns, 24), positions(rows, columns, 24)[1:], atol=2e-6
    )


# Published counts (timm, without a classifier), which include positions as parameters.
@pytest.mark.parametrize(
    ("name", "patch", "published", "features"),
    [
        ("vit_tiny", 16, 5_524_416, 192),
        ("vit_small", 16, 21_665_664, 384),
        ("vit_base", 16, 85_798_656, 768),
        ("vit_large", 16, 303_301_632, 1024),
        ("vit_huge", 14, 630_764_800, 1280),
    ],
)
def test_parameter_counts_are_the_published_ones(name, patch, published, features):
    model = vit(name, patch=patch)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 224, 224, 3)))["params"]
    learned = (1 + (224 // patch) ** 2) * features
    assert sum(x.size for x in jax.tree.leaves(params)) == published - learned
    assert model.features == features


def test_the_small_one_has_the_heads_of_moco_v3_and_the_stem_replaces_a_block():
    small = vit("vit_small")
    assert (small.heads, small.depth) == (12, 12)
    assert vit("vit_small", stem="conv").blocks == small.blocks[:-1]
    assert vit("vit_small", heads=6, depth=2, width=0.5) == ViT(192, 2, 6)


@pytest.fixture(scope="module")
def params():
    model = vit("vit_tiny", patch=8, depth=1)
    return jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), np.zeros((1, 16, 16, 3))
    )["params"]


def test_the_initialisation_is_moco_v3s(params):
    bounds = {
        ("patch_embed",): math.sqrt(6 / (3 * 64 + 192)),
        ("block1", "qkv"): math.sqrt(6 / (192 + 192)),
        ("block1", "proj"): math.sqrt(6 / (192 + 192)),
        ("block1", "fc1"): math.sqrt(6 / (192 + 768)),
        ("block1", "fc2"): math.sqrt(6 / (192 + 768)),
    }
    for path, bound in bounds.items():
        layer = functools.reduce(lambda tree, name: tree[name], path, params)
        kernel = np.asarray(layer["kernel"])
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        np.testing.assert_array_equal(layer["bias"], 0)
    assert 0 < np.asarray(params["cls_token"]).std() < 2e-6
    np.testing.assert_array_equal(params["block1"]["norm1"]["scale"], 1)


def gradients(model: ViT, layout=None, images=IMAGES):
    """Returns the gradients of a random projection of the features."""
    weights = np.random.default_rng(2).normal(size=(len(images), model.features))
    images, weights = images.astype(np.float32), weights.astype(np.float32)
    params = jax.tree.map(np.float32, drawn()["params"])
    if layout:
        images, weights = layout.put_batch((images, weights))
        params = layout.put(params, layout.replicated)

    def loss(params, images, weights):
        return (model.apply({"params": params}, images, train=True) * weights).sum()

    return jax.device_get(jax.jit(jax.grad(loss))(params, images, weights))


@functools.cache
def plain_gradients():
    return gradients(network())


def assert_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5 * np.abs(y).max()),
        found,
        expected,
    )


def test_blocks_computed_again_have_the_same_gradients():
    assert_close(gradients(network(remat=True)), plain_gradients())


def test_eight_devices_have_the_gradients_of_one():
    assert_close(gradients(network(), make_layout(jax.devices()[:8])), plain_gradients())


def test_a_frozen_patch_map_gets_no_gradient_and_the_rest_keeps_its_own():
    frozen = network(freeze_patch=True)
    found = gradients(frozen)
    for name in frozen.frozen:
        assert not any(x.any() for x in jax.tree.leaves(found.pop(name)))
    assert frozen.frozen == ("patch_embed",) and network().frozen == ()
    assert_close(found, {name: plain_gradients()[name] for name in found})


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"stem": "conv", "patch": 16}])
def test_bfloat16_features_are_near_those_of_float32(options):
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    model = network(**options)
    variables = model.init(jax.random.key(0), images, train=False)
    wide = model.apply(variables, images, train=False)
    narrow = network(**options, dtype=jnp.bfloat16).apply(variables, images, train=False)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_the_tokens_stay_float32_between_the_blocks_in_bfloat16():
    model = network(dtype=jnp.bfloat16)
    variables = jax.tree.map(np.float32, drawn())
    _, seen = model.apply(
        variables, IMAGES.astype(np.float32), train=False, capture_intermediates=True
    )
    assert {seen["intermediates"][name]["__call__"][0].dtype for name in model.blocks} == {
        np.dtype(np.float32)
    }
    assert seen["intermediates"]["block1"]["fc1"]["__call__"][0].dtype == jnp.bfloat16


def test_the_convolutional_stem_has_batch_norm_in_groups():
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    model = network(stem="conv", patch=16, bn_groups=2)
    variables = model.init(jax.random.key(0), images[:2], train=False)
    channels = [variables["params"][f"stem_conv{i}"]["kernel"].shape[-1] for i in (1, 2, 3, 4)]
    assert channels == [2, 4, 8, 16]
    assert variables["params"]["patch_embed"]["kernel"].shape == (1, 1, 16, 16)
    kernel = variables["params"]["stem_conv1"]["kernel"]
    assert float(jnp.abs(kernel).max()) <= 1 / math.sqrt(27)
    together, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert set(changed["batch_stats"]) == {f"stem_norm{i}" for i in (1, 2, 3, 4)}
    # Each group is a batch of its own.
    alone, _ = network(stem="conv", patch=16).apply(
        variables, images[:4], train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(together[:4], alone, atol=1e-4)


def test_drop_path_skips_branches_of_whole_images_and_keeps_their_mean():
    images = np.tile(IMAGES[:1].astype(np.float32), (512, 1, 1, 1))
    variables = jax.tree.map(np.float32, drawn(depth=2))
    # The norm at the end is not linear: compare the tokens after the last block.
    model = network(depth=2, drop_path=0.5)

    def last_tokens(model, **rngs):
        _, seen = model.apply(
            variables, images, train=True, capture_intermediates=True, rngs=rngs or None
        )
        return [np.asarray(seen["intermediates"][name]["__call__"][0]) for name in model.blocks]

    plain = last_tokens(network(depth=2))
    dropped = last_tokens(model, drop_path=jax.random.key(0))
    # The rate of the first of two blocks is 0, that of the last is the given one.
    np.testing.assert_allclose(dropped[0], plain[0], rtol=1e-4, atol=1e-4)
    kept = [np.abs(x - y).max() < 1e-4 for x, y in zip(dropped[1], dropped[0], strict=True)]
    assert 0.15 < np.mean(kept) < 0.35  # both branches are skipped: a quarter
    attended = dropped[1] - dropped[0]
    assert len(np.unique(np.round(attended[:, 0, 0], 3))) == 4  # each branch is there or not


def test_without_training_drop_path_needs_no_random_numbers_and_changes_nothing():
    images, variables = IMAGES.astype(np.float32), jax.tree.map(np.float32, drawn())
    model = network(drop_path=0.3)
    np.testing.assert_array_equal(
        model.apply(variables, images, train=False), network().apply(variables, images, train=False)
    )
    init = [m.init(jax.random.key(0), images, train=True) for m in (model, network())]
    jax.tree.map(np.testing.assert_array_equal, *init)


def test_images_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="model.patch=4 must divide the image size, 8 x 10 pixels"):
        network().apply(drawn(), IMAGES[:, :, :10], train=False)


def test_a_loop_over_parts_of_the_batch_has_the_features_of_the_whole():
    images, variables = IMAGES.astype(np.float32), jax.tree.map(np.float32, drawn())
    model = network(remat=True)
    forward = functools.partial(model.apply, variables, train=True)
    parts = jax.jit(lambda x: jax.lax.map(forward, x))(images.reshape(4, 2, *images.shape[1:]))
    np.testing.assert_allclose(parts.reshape(8, -1), jax.jit(forward)(images), rtol=1e-4, atol=1e-5)
