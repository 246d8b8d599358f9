import jax
import numpy as np
import pytest

from moco_jax.contrast import info_nce
from moco_jax.mesh import make_layout

T = 0.2


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def arrays():
    return unit(16, 8, seed=0), unit(16, 8, seed=1), unit(3, 16, 8, seed=2)


def reference(q, k, ring):
    """Cross-entropy and its gradient for q, from the formulae, in float64."""
    q, k, ring = (x.astype(np.float64) for x in (q, k, ring))
    candidates = np.concatenate(
        [k[:, None], np.broadcast_to(ring.reshape(1, -1, 8), (16, 48, 8))], 1
    )
    logits = np.einsum("bd,bkd->bk", q, candidates) / T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(p[:, 0]).mean()
    grad = (np.einsum("bk,bkd->bd", p, candidates) - k) / T / len(q)
    return loss, grad, 100 * np.mean(logits.argmax(1) == 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_loss_and_gradient_follow_the_formulae(arrays, devices):
    layout = make_layout(jax.devices()[:devices])

    @jax.jit
    def loss_and_grad(q, k, ring):
        def loss(q):
            contrast = info_nce(q, k, ring, temperature=T, layout=layout)
            return contrast.loss, contrast

        return jax.value_and_grad(loss, has_aux=True)(q)

    q, k, ring = arrays
    placed = layout.put_batch(q), layout.put_batch(k), jax.device_put(ring, layout.sharded(1))
    (loss, contrast), grad = loss_and_grad(*placed)
    expected_loss, expected_grad, expected_accuracy = reference(*arrays)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-6)
    assert float(contrast.accuracy) == pytest.approx(expected_accuracy)
    assert float(contrast.positive_similarity) == pytest.approx((q * k).sum(1).mean(), rel=1e-5)
    assert float(contrast.negative_similarity) == pytest.approx(
        (q @ ring.reshape(-1, 8).T).mean(), rel=1e-4
    )


def test_keys_and_ring_get_no_gradient(arrays):
    layout = make_layout(jax.devices()[:1])

    def loss(q, k, ring):
        return info_nce(q, k, ring, temperature=T, layout=layout).loss

    for gradient in jax.grad(loss, argnums=(1, 2))(*arrays):
        np.testing.assert_array_equal(gradient, 0)
