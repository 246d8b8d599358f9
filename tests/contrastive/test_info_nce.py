import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from moco_jax.contrastive import ring_scores
from moco_jax.contrastive.info_nce import info_nce
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.collectives import collectives

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


WAYS = {"by_matrix": ring_scores.by_matrix, "by_scan": ring_scores.by_scan}


def answer(way, q, ring, devices, temperature=T):
    layout = make_layout(jax.devices()[:devices])

    @jax.jit
    def both(q, ring):
        def total(q):
            found = way(layout.replicate(q), ring, temperature, layout)
            # Not the same for all queries: a gradient that is mixed up would not be seen.
            return (found.log_sum * jnp.arange(1.0, 1 + len(q))).sum(), found

        return jax.value_and_grad(total, has_aux=True)(q)

    (_, found), grad = both(layout.put_batch(q), jax.device_put(ring, layout.sharded(1)))
    return *found, grad


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_the_scan_gives_what_the_matrix_gives(monkeypatch, devices, temperature):
    monkeypatch.setattr(
        ring_scores, "_KEYS_PER_PASS", 32 // devices
    )  # three passes, two rows in each
    q, ring = np.float64(unit(16, 8, seed=0)), np.float64(unit(6, 16, 8, seed=2))
    with jax.enable_x64(True):
        results = [answer(way, q, ring, devices, temperature) for way in WAYS.values()]
    for matrix, scan in zip(*results, strict=True):
        np.testing.assert_allclose(scan, matrix, rtol=1e-10, atol=1e-10)
    keys = ring.reshape(-1, 8)
    logits = q @ keys.T / temperature
    log_sum = special.logsumexp(logits, axis=1)
    fractions = np.exp(logits - log_sum[:, None])
    np.testing.assert_allclose(results[1][0], log_sum, rtol=1e-10)
    np.testing.assert_allclose(results[1][1], (q @ keys.T).max(1), rtol=1e-10)
    expected = np.arange(1, 17)[:, None] * (fractions @ keys) / temperature
    np.testing.assert_allclose(results[1][2], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_ring_of_half_the_bytes(way):
    q, ring = unit(16, 8, seed=0), unit(6, 16, 8, seed=2)
    whole, half = (answer(way, q, x, 8) for x in (ring, ring.astype(jnp.bfloat16)))
    for exact, rounded in zip(whole, half, strict=True):
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, exact, rtol=0.02, atol=0.02)


def test_a_dictionary_of_which_the_matrix_would_be_too_large_is_scanned(monkeypatch):
    layout = make_layout(jax.devices()[:1])
    q, ring = unit(16, 8, seed=0), unit(6, 16, 8, seed=2)
    ways = []
    for name in WAYS:
        monkeypatch.setattr(ring_scores, name, lambda *_, name=name: ways.append(name))
    for largest in (16 * 6 * 16, 16 * 6 * 16 - 1):
        monkeypatch.setattr(ring_scores, "_MATRIX_MOST", largest)
        ring_scores.score_ring(q, ring, temperature=T, layout=layout)
    assert ways == ["by_matrix", "by_scan"]


def test_the_scan_moves_no_keys_and_reduces_once():
    layout = make_layout()
    q, ring = unit(16, 8, seed=0), unit(64, 16, 8, seed=2)

    def total(q, ring):
        return ring_scores.by_scan(layout.replicate(q), ring, T, layout).log_sum.sum()

    compiled = (
        jax.jit(jax.grad(total))
        .lower(layout.put_batch(q), jax.device_put(ring, layout.sharded(1)))
        .compile()
    )
    found = collectives(compiled.as_text())
    assert {c.times for c in found} == {1}  # none inside the loop
    assert max(c.bytes for c in found) <= (16 * 8 + 16) * 4  # a mean key and a sum a query
