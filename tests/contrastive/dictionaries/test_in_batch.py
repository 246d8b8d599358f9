"""The batch as the dictionary, against the formulae in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from moco_jax.contrastive.dictionaries import StepIndices
from moco_jax.contrastive.dictionaries.in_batch import InBatch
from moco_jax.parallel.mesh import make_layout
from tests.tiny import tiny_config

T = 0.2


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def reference(q, k, own_view):
    """Loss, gradients for q and k, and accuracy."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    candidates = np.concatenate([k, q]) if own_view else k
    logits = q @ candidates.T / T
    if own_view:
        logits[np.arange(16), 16 + np.arange(16)] = -np.inf  # a query is no negative of its own
    p = np.exp(logits - special.logsumexp(logits, axis=1, keepdims=True))
    error = p.copy()
    error[np.arange(16), np.arange(16)] -= 1
    error /= 16 * T
    grad_q, grad_k = error @ candidates, error[:, :16].T @ q
    if own_view:
        grad_q += error[:, 16:].T @ q
    return -np.log(np.diagonal(p)).mean(), grad_q, grad_k, 100 * (logits.argmax(1) == range(16))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("own_view", [False, True], ids=["keys", "both views"])
def test_loss_and_gradients_follow_the_formulae(devices, own_view):
    layout = make_layout(jax.devices()[:devices])
    key_encoder = "shared" if own_view else "trained"
    dictionary = InBatch(tiny_config(temperature=T, key_encoder=key_encoder), layout)

    @jax.jit
    def loss_and_grad(q, k):
        def loss(q, k):
            batch = StepIndices(jnp.int32(0), jnp.arange(16))
            found = dictionary.look_up(q, k, (), batch)
            return found.loss, found

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(q, k)

    q, k = unit(16, 8, seed=0), unit(16, 8, seed=1)
    k[:6] = unit(6, 8, seed=2) * 0.1 + q[:6]  # some are found
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    (loss, found), grads = loss_and_grad(layout.put_batch(q), layout.put_batch(k))
    expected_loss, *expected_grads, right = reference(q, k, own_view)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)
    assert float(found.accuracy) == pytest.approx(right.mean()) and 0 < right.mean() < 100
    assert float(found.positive_similarity) == pytest.approx((q * k).sum(1).mean(), rel=1e-4)
    others = [q @ k.T, q @ q.T][: 1 + own_view]
    negatives = [x[i, j] for x in others for i in range(16) for j in range(16) if i != j]
    assert float(found.negative_similarity) == pytest.approx(np.mean(negatives), rel=1e-3, abs=1e-5)
