"""Blocks that a network repeats: JAX traces them once, and they compute the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models import vit

NETWORK = vit.ViT(dim=16, depth=3, heads=2, patch=4)


@pytest.fixture
def traced(monkeypatch):
    """Lists the blocks that are traced."""
    names, called = [], vit.Block.__call__

    def call(self, *arguments):
        names.append(self.name)
        return called(self, *arguments)

    monkeypatch.setattr(vit.Block, "__call__", call)
    return names


@pytest.mark.parametrize(("drop", "kinds"), [(0.0, 1), (0.1, 3)])
@pytest.mark.parametrize("remat", [False, True])
def test_equal_blocks_are_traced_once_and_compute_the_same(drop, kinds, remat, traced, monkeypatch):
    network = NETWORK.clone(remat=remat, drop_path=drop)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    weights = jax.random.normal(jax.random.key(3), (4, network.features))
    variables = network.init(jax.random.key(0), images, train=True)
    rngs = {"drop_path": jax.random.key(2)} if drop else {}

    def loss(params):
        given = variables | {"params": params}
        y, changed = network.apply(given, images, train=True, rngs=rngs, mutable=["batch_stats"])
        return (y * weights).sum(), changed

    def results():
        traced.clear()
        return jax.jit(jax.grad(lambda p: loss(p), has_aux=True))(variables["params"])

    once = results()
    assert len(traced) == kinds
    monkeypatch.setattr(vit, "repeated", one_by_one)
    each = results()
    assert len(traced) == 3
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), once, each)


def one_by_one(block, network, *, remat, static_argnums=()):
    return nn.remat(block, static_argnums=static_argnums) if remat else block


def test_the_initial_weights_are_those_of_blocks_that_are_traced_one_by_one(monkeypatch):
    images = jnp.zeros((4, 8, 8, 3))
    initialise = lambda: NETWORK.init(jax.random.key(0), images, train=True)  # noqa: E731
    once = initialise()
    monkeypatch.setattr(vit, "repeated", one_by_one)
    jax.tree.map(np.testing.assert_array_equal, once, initialise())
