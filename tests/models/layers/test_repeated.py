"""Blocks that a network repeats: JAX traces them once, and they compute the same."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models import resnet, vit

NETWORKS = {
    "resnet": lambda **options: resnet.ResNet((3, 2), resnet.BasicBlock, "small", width=0.125),
    "vit": lambda **options: vit.ViT(dim=16, depth=3, heads=2, patch=4, **options),
    "vit, dropped": lambda **options: vit.ViT(dim=16, depth=3, heads=2, patch=4, drop_path=0.1),
}
KINDS = {"resnet": 3, "vit": 1, "vit, dropped": 3}  # traced; a resnet's first stage has one kind


@pytest.fixture
def traced(monkeypatch):
    """Counts how often blocks are traced."""
    counts = collections.Counter()

    def counting(block, kind):
        called = block.__call__

        def call(self, *arguments):
            counts[kind] += 1
            return called(self, *arguments)

        monkeypatch.setattr(block, "__call__", call)

    counting(resnet.BasicBlock, "blocks")
    counting(vit.Block, "blocks")
    return counts


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("remat", [False, True])
def test_equal_blocks_are_traced_once_and_compute_the_same(name, remat, traced, monkeypatch):
    network = NETWORKS[name]().clone(remat=remat)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    weights = jax.random.normal(jax.random.key(3), (4, network.features))
    variables = network.init(jax.random.key(0), images, train=True)
    rngs = {"drop_path": jax.random.key(2)} if "dropped" in name else {}

    def loss(params):
        given = variables | {"params": params}
        y, changed = network.apply(given, images, train=True, rngs=rngs, mutable=["batch_stats"])
        return (y * weights).sum(), changed

    def results():
        traced.clear()
        return jax.jit(jax.grad(lambda p: loss(p), has_aux=True))(variables["params"])

    once = results()
    assert traced["blocks"] == KINDS[name]
    for module in (resnet, vit):
        monkeypatch.setattr(module, "repeated", one_by_one)
    each = results()
    assert traced["blocks"] == len(network.blocks)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), once, each)


def one_by_one(block, network, *, remat, static_argnums=()):
    return nn.remat(block, static_argnums=static_argnums) if remat else block


@pytest.mark.parametrize("name", NETWORKS)
def test_the_initial_weights_are_those_of_blocks_that_are_traced_one_by_one(name, monkeypatch):
    network, images = NETWORKS[name](), jnp.zeros((4, 8, 8, 3))
    initialise = lambda: network.init(jax.random.key(0), images, train=True)  # noqa: E731
    once = initialise()
    for module in (resnet, vit):
        monkeypatch.setattr(module, "repeated", one_by_one)
    jax.tree.map(np.testing.assert_array_equal, once, initialise())
