import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.contrastive.micro_batches import by_parts
from moco_jax.models.layers.batch_norm import GroupedBatchNorm
from moco_jax.parallel.mesh import make_layout

_IMAGES = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
_KERNEL = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)


def _encode(kernel, images, groups):
    """A layer with batch norm in groups; returns features and updated running averages."""
    norm = GroupedBatchNorm(groups)
    variables = {
        "params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)},
    }
    y, changed = norm.apply(variables, images @ kernel, mutable=["batch_stats"])
    return jax.nn.relu(y), changed["batch_stats"]


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("groups", [4, 8])
def test_parts_give_the_features_statistics_and_gradient_of_the_whole_batch(devices, parts, groups):
    layout = make_layout(jax.devices()[:devices])

    def loss(kernel, parts):
        images = layout.shard(jnp.asarray(_IMAGES))
        features, stats = by_parts(_encode, kernel, images, parts, groups, layout)
        # Every feature depends on every image of the batch, as in a look-up.
        return jnp.square(features @ features.T).sum(), (features, stats)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (value, (features, stats)), gradient = run(_KERNEL, parts)
    (value_1, (features_1, stats_1)), gradient_1 = run(_KERNEL, 1)
    np.testing.assert_allclose(value, value_1, rtol=1e-5)
    np.testing.assert_allclose(features, features_1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, gradient_1, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, stats_1)


def test_images_stay_on_their_device_and_gradients_are_summed_once():
    layout = make_layout(jax.devices()[:4])

    def encode(kernel, images, groups):
        return jnp.tanh(images @ kernel), {}

    def run(kernel, images):
        return by_parts(encode, kernel, layout.shard(images), 4, 0, layout)[0].sum()

    text = jax.jit(jax.grad(run)).lower(_KERNEL, _IMAGES).compile().as_text()
    for name in ("all-gather", "all-to-all", "collective-permute"):
        assert name not in text
    sums = [line for line in text.splitlines() if " all-reduce(" in line]
    assert len(sums) == 1 and "while" in text
    entry = text[text.index("\nENTRY") :]
    assert sums[0] in entry
