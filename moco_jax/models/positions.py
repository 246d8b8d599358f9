"""Fixed position embeddings of the patches of an image."""

import jax
import jax.numpy as jnp

_TEMPERATURE = 10_000.0


def sincos(
    rows: int,
    columns: int,
    dim: int,
    dtype: jnp.dtype = jnp.float32,
    columns_first: bool = False,
) -> jax.Array:
    """Returns 2-D sine and cosine embeddings [rows * columns, dim] of patches in row-major order.

    The first half of a vector depends on the row and the second half on the column, as in MoCo v3's
    code; with `columns_first` it is the other way round, as in MAE's. Each half has dim / 4 sines,
    then dim / 4 cosines. `dim` must be a multiple of 4.
    """
    frequencies = _TEMPERATURE ** -(jnp.arange(dim // 4, dtype=dtype) / (dim // 4))

    def waves(length: int) -> jax.Array:
        angles = jnp.arange(length, dtype=dtype)[:, None] * frequencies[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)

    down = jnp.broadcast_to(waves(rows)[:, None], (rows, columns, dim // 2))
    across = jnp.broadcast_to(waves(columns)[None], (rows, columns, dim // 2))
    halves = [across, down] if columns_first else [down, across]
    return jnp.concatenate(halves, axis=-1).reshape(rows * columns, dim)
