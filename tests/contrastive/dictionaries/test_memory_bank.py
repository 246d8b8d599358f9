"""The memory bank, against the formulae written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import special, stats

from moco_jax.contrastive.dictionaries import StepIndices, memory_bank
from moco_jax.contrastive.dictionaries.memory_bank import (
    MemoryBank,
    MemoryBankNCE,
    NCEEntries,
)
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.collectives import collectives
from tests.tiny import tiny_config

T = 0.1
IMAGES = 40
CONFIG = tiny_config(
    seed=3, batch_size=16, model__dim=8, temperature=T, bank__negatives=64, bank__momentum=0.5
)
INDICES = np.array([5, 0, 39, 12, 13, 14, 30, 2], np.int32)


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def batch(step=0) -> StepIndices:
    return StepIndices(jnp.int32(step), jnp.asarray(INDICES))


def changed(**changes) -> ConfigDict:
    config = CONFIG.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_starts_with_random_unit_vectors_for_every_image():
    features = MemoryBank(CONFIG, make_layout(jax.devices()[:1]), IMAGES).init(jax.random.key(0))
    assert features.shape == (48, 8)
    np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 1, rtol=1e-5)


def test_others_are_drawn_evenly_from_all_but_the_batch():
    draw = jax.jit(jax.vmap(lambda step: memory_bank.draw_others(CONFIG, IMAGES, batch(step))))
    drawn = np.asarray(draw(jnp.arange(500)))
    counts = np.bincount(drawn.ravel(), minlength=40)
    others = np.setdiff1d(np.arange(40), INDICES)
    assert len(counts) == 40 and not counts[INDICES].any()
    assert stats.chisquare(counts[others]).pvalue > 1e-3
    assert len(np.unique(drawn, axis=0)) == 500  # each step draws anew


def test_noise_is_drawn_evenly_from_all():
    draw = jax.jit(jax.vmap(lambda step: memory_bank.draw_noise(CONFIG, IMAGES, batch(step))))
    counts = np.bincount(np.asarray(draw(jnp.arange(500))).ravel(), minlength=40)
    assert len(counts) == 40 and stats.chisquare(counts).pvalue > 1e-3


def test_slots_of_the_batch_are_mixed_and_no_others():
    features, keys = unit(48, 8, seed=0), unit(8, 8, seed=1)
    mixed = memory_bank.mix(jnp.asarray(features), keys, INDICES, 0.75)
    expected = features.copy()
    expected[INDICES] = 0.75 * features[INDICES] + 0.25 * keys
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_of_an_image_that_comes_twice_the_first_row_counts():
    features, keys = unit(48, 8, seed=0), unit(4, 8, seed=1)
    mixed = memory_bank.mix(jnp.asarray(features), keys, jnp.array([7, 3, 7, 7]), 0.0)
    expected = features.copy()
    expected[[7, 3]] = keys[:2]
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_a_query_is_not_compared_with_its_own_slot_among_the_noise():
    layout = make_layout(jax.devices()[:1])
    config = changed(bank__negatives=400)  # every slot is drawn
    features = np.eye(48, dtype=np.float32)
    entries = NCEEntries(jnp.asarray(features), jnp.float32(1))
    queries = jnp.asarray(features[INDICES])
    bank = MemoryBankNCE(config, layout, IMAGES)
    found = bank.look_up(queries, queries, entries, batch(12))
    assert set(INDICES) <= set(
        np.asarray(memory_bank.draw_noise(config, IMAGES, batch(12))).tolist()
    )
    assert float(found.accuracy) == 100


def softmax_reference(q, features, drawn):
    logits = np.concatenate([(q * features[INDICES]).sum(1)[:, None], q @ features[drawn].T], 1) / T
    p = special.softmax(logits, axis=1)
    gradient = (np.einsum("bk,kd->bd", p[:, 1:], features[drawn])) / T
    gradient += (p[:, :1] - 1) * features[INDICES] / T
    return -np.log(p[:, 0]).mean(), gradient / len(q)


def nce_reference(q, features, drawn, z):
    own = np.exp((q * features[INDICES]).sum(1) / T) / z
    noise = np.exp(q @ features[drawn].T / T) / z
    even = len(drawn) / 40
    h_own, h_noise = own / (own + even), noise / (noise + even)
    loss = -(np.log(h_own) + np.log(1 - h_noise).sum(1)).mean()
    gradient = -(1 - h_own)[:, None] * features[INDICES] + h_noise @ features[drawn]
    return loss, gradient / T / len(q)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("step", [0, 12], ids=["first step", "Z known"])
def test_losses_and_gradients_follow_the_formulae(devices, step):
    layout = make_layout(jax.devices()[:devices])
    features, q = unit(48, 8, seed=0), unit(8, 8, seed=1)
    bank, bank_nce = (kind(CONFIG, layout, IMAGES) for kind in (MemoryBank, MemoryBankNCE))

    @jax.jit
    def both(q, features):
        entries = NCEEntries(features, jnp.float32(700.0))
        return (
            jax.value_and_grad(loss)(q, features, bank),
            jax.value_and_grad(loss)(q, entries, bank_nce),
        )

    def loss(q, entries, dictionary):
        return dictionary.look_up(q, q, entries, batch(step)).loss

    got = both(layout.put_batch(q), layout.put(features, layout.sharded()))
    others = np.asarray(memory_bank.draw_others(CONFIG, IMAGES, batch(step)))
    noise = np.asarray(memory_bank.draw_noise(CONFIG, IMAGES, batch(step)))
    q, features = q.astype(np.float64), features.astype(np.float64)
    estimate = 40 * np.exp(q @ features[noise].T / T).mean()
    z = estimate if step == 0 else 700.0  # at step 0 nothing was known before
    expected = softmax_reference(q, features, others), nce_reference(q, features, noise, z)
    for (value, gradient), (expected_loss, expected_gradient) in zip(got, expected, strict=True):
        assert float(value) == pytest.approx(expected_loss, rel=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_z_is_the_mean_over_the_first_steps_and_constant_then():
    layout = make_layout(jax.devices()[:1])
    update = jax.jit(MemoryBankNCE(changed(bank__momentum=1.0), layout, IMAGES).update)
    features, estimates = unit(48, 8, seed=0), []
    bank = NCEEntries(jnp.asarray(features), jnp.float32(0))
    for step in range(13):
        q, noise = unit(8, 8, seed=step), memory_bank.draw_noise(CONFIG, IMAGES, batch(step))
        estimates.append(40 * np.exp(q @ features[noise].T / T).mean())
        bank = update(bank, q, batch(step))
        assert float(bank.partition) == pytest.approx(np.mean(estimates[:10]), rel=1e-4)


def test_the_bank_is_never_moved():
    """What crosses devices follows from B and K, whatever the number of images."""
    layout = make_layout()
    rows, dim, count = 8 * 4096, 16, 64
    config = changed(bank__negatives=count)

    dictionary = MemoryBankNCE(config, layout, rows)

    def step(entries, q, indices):
        at = StepIndices(jnp.int32(20), indices)
        contrast = dictionary.look_up(q, q, entries, at)
        return contrast.loss, dictionary.update(entries, q, at)

    def array(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    shardings = NCEEntries(layout.sharded(), layout.replicated)
    bank = NCEEntries(
        array((rows, dim), jnp.float32, layout.sharded()),
        array((), jnp.float32, layout.replicated),
    )
    arguments = (
        bank,
        array((16, dim), jnp.float32, layout.sharded()),
        array((16,), jnp.int32, layout.sharded()),
    )
    jitted = jax.jit(step, out_shardings=(layout.replicated, shardings), donate_argnums=0)
    moved = collectives(jitted.lower(*arguments).compile().as_text())
    assert moved and max(c.bytes for c in moved) <= 8 * count * dim * 4
