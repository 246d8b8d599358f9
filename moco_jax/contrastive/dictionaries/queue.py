"""MoCo's dictionary: a queue of the last K keys, kept as a ring of key batches (MoCo, sec. 3.2).

`ring` is [R, N, D], float32 or bfloat16, with R = K / N rows of one step's N keys, sharded over N
exactly as the keys are. So each device writes its own keys into its own memory: enqueueing needs no
communication, the order is exactly first in, first out, and the row to write follows from the step
alone.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def init(
    key: jax.Array,
    *,
    queue_size: int,
    keys_per_step: int,
    dim: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns a ring dtype[K // N, N, D] of random unit vectors, as the reference starts.

    Raises:
      ValueError: if the keys of one step don't divide the queue.
    """
    if queue_size <= 0 or queue_size % keys_per_step:
        raise ValueError(f"a queue of {queue_size} is no multiple of {keys_per_step} keys a step")
    ring = jax.random.normal(key, (queue_size // keys_per_step, keys_per_step, dim), jnp.float32)
    return (ring / jnp.linalg.norm(ring, axis=-1, keepdims=True)).astype(dtype)


def enqueue(ring: jax.Array, keys: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the ring [R, N, D] with its oldest row replaced by keys f32[N, D].

    Args:
      ring: the dictionary.
      keys: the keys of this step; no gradient passes.
      step: i32[], 0 at the first step.
    """
    keys = jax.lax.stop_gradient(keys).astype(ring.dtype)
    row, start = step % ring.shape[0], jnp.zeros_like(step)
    return jax.lax.dynamic_update_slice(ring, keys[None], (row, start, start))
