"""The product of tokens with a matrix; the implementation for each platform is chosen here."""

import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import by_platform


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x [..., d] times the kernel [d, n]: [..., n].

    On a CPU, it is a product of two matrices, and x and the result are written to memory. Otherwise
    XLA joins it with the norm before it and adds a bias from an array with the bias of each token,
    both slow, and copies the tokens for the gradient by the kernel.
    """
    return by_platform(x, kernel, default=jnp.matmul, cpu=_of_rows)


def _forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _backward(saved, gradient):
    def derived(x, kernel, g):
        return jax.vjp(jnp.matmul, x, kernel)[1](g)

    return by_platform(*saved, gradient, default=derived, cpu=_gradients_of_rows)


product.defvjp(_forward, _backward)


def _of_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    stored = jax.lax.optimization_barrier
    return stored(stored(_rows(x)) @ kernel).reshape(*x.shape[:-1], -1)


def _gradients_of_rows(x, kernel, gradient):
    by_x = (_rows(gradient) @ kernel.T).reshape(x.shape)
    return by_x, _rows(x).T @ _rows(gradient)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
