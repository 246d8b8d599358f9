"""Blocks that a network repeats."""

from typing import Any

import flax.linen as nn


def repeated(
    block: type[nn.Module], network: nn.Module, *, remat: bool, static_argnums: tuple[int, ...] = ()
) -> Any:
    """Returns the class of a network's blocks; JAX traces and lowers equal blocks once.

    The 12 blocks of a ViT-B are equal. The compilation cache saves no tracing and no lowering, so
    every start of a run pays for them. XLA inlines the calls; in a profile, equal blocks have the
    name of one of them. Blocks that draw random numbers, as for the initial weights or stochastic
    depth, are traced one by one.

    It is not for the blocks of a ResNet: XLA for TPUs then fuses less of their backward pass.

    Args:
      block: class of the blocks; those with equal attributes are equal.
      network: that has the blocks; call this function inside its compact method.
      remat: whether the backward pass computes the activations inside each block again.
      static_argnums: of `__call__`; the module is number 0.
    """
    if remat:
        block = nn.remat(block, static_argnums=static_argnums)
    if network.scope and network.scope.rngs:  # a jitted block draws other random numbers
        return block
    return nn.jit(block, static_argnums=static_argnums)
