"""The key encoder follows the query encoder by an exponential moving average (MoCo, eq. 2)."""

import jax
import optax


def update(key_params: optax.Params, params: optax.Params, momentum: jax.Array | float):
    """Returns momentum * key_params + (1 - momentum) * params, leaf by leaf.

    Parameters only: each encoder keeps its own batch statistics, as in the reference.
    """
    return optax.incremental_update(params, key_params, step_size=1.0 - momentum)
