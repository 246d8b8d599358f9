"""Faster convolutions for ResNets on CPUs.

On GPUs and TPUs, XLA compiles `jax.lax.conv_general_dilated` and its gradients unchanged. On CPUs:

- Large 3x3 convolutions of stride 1 and their gradients by the input use Winograd's F(2x2, 3x3)
  (Lavin and Gray 2016, arXiv 1509.09308). It takes 2.25 times fewer multiplications; in float32,
  the rounding error is 1e-6 of the largest value.
- 1x1 convolutions and their gradients are matrix products.
- The gradient by the input of a 3x3 convolution of stride 2 is computed separately for even and odd
  rows and columns. XLA computes it from a padded array in which three of four values are zero.

benchmarks/results/step.md has the measured speeds.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.parallel.platforms import by_platform

_NHWC = ("NHWC", "HWIO", "NHWC")

# Winograd is used from this number of multiplications on, where it is worth its compile time, and
# from this number of channels on, where it is faster.
_LARGE = 2**29
_WIDE = 64

_lax_only = contextvars.ContextVar("lax_only", default=False)


@contextlib.contextmanager
def lax_only() -> Iterator[None]:
    """Makes convolutions and attention that are traced in the block those of lax.

    A program for CPUs then has the operations of a program for accelerators, and XLA counts them
    all: it counts a loop, as over the heads of attention, as one run of its body.
    """
    token = _lax_only.set(True)
    try:
        yield
    finally:
        _lax_only.reset(token)


def uses_lax_only() -> bool:
    """Returns whether a `lax_only` block is entered."""
    return _lax_only.get()


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **kwargs,
) -> jax.Array:
    """Returns `lax.conv_general_dilated` of lhs [B, H, W, C] and rhs [k, k, C, F]; for `nn.Conv`.

    The implementations of this file have first-order gradients in reverse mode only. All other
    convolutions call lax.
    """
    kernel, stride = rhs.shape[0], window_strides[0]
    own = (
        (kernel, stride) in ((1, 1), (1, 2), (3, 1), (3, 2))
        and rhs.shape[:2] == (kernel, kernel)
        and tuple(window_strides) == (stride, stride)
        and all(tuple(pad) == (kernel // 2, kernel // 2) for pad in padding)
        and set(kwargs.get("rhs_dilation") or (1,)) == {1}
        and kwargs.get("feature_group_count", 1) == 1
        and lhs.dtype in (jnp.float32, jnp.float64)  # bfloat16 products are slow on CPUs
        and not uses_lax_only()
    )
    if own:
        return _conv(lhs, rhs, stride)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    forward = _lax_conv
    if w.shape[0] == 1:
        forward = _pointwise
    elif stride == 1 and _winograd_pays(x, w):
        forward = _winograd
    return _on_cpu(forward, _lax_conv, x, w, stride=stride)


def _conv_forward(x, w, stride):
    return _conv(x, w, stride), (x, w)


def _conv_backward(stride, saved, g):
    x, w = saved
    by_x, by_w = _lax_by_x, _lax_by_w
    if w.shape[0] == 1:
        by_x, by_w = _pointwise_by_x, _pointwise_by_w
    elif stride == 2:
        by_x = _strided_by_x
    elif _winograd_pays(x, w):
        by_x = _winograd_by_x
    return (
        _on_cpu(by_x, _lax_by_x, g, x, w, stride=stride),
        _on_cpu(by_w, _lax_by_w, g, x, w, stride=stride),
    )


_conv.defvjp(_conv_forward, _conv_backward)


def _on_cpu(function: Callable, by_lax: Callable, *arrays: jax.Array, stride: int) -> jax.Array:
    """Returns `function` of the arrays and the stride on a CPU, `by_lax` of them elsewhere."""
    cpu, default = (functools.partial(f, stride=stride) for f in (function, by_lax))
    return by_platform(*arrays, cpu=cpu, default=default)


def _winograd_pays(x: jax.Array, w: jax.Array) -> bool:
    return min(w.shape[2:]) >= _WIDE and x.size * w.size // w.shape[2] >= _LARGE


def _lax_conv(x, w, stride):
    pad = w.shape[0] // 2
    return lax.conv_general_dilated(x, w, (stride,) * 2, ((pad, pad),) * 2, dimension_numbers=_NHWC)


def _lax_by_x(g, x, w, stride):
    return jax.linear_transpose(lambda x: _lax_conv(x, w, stride), x)(g)[0]


def _lax_by_w(g, x, w, stride):
    return jax.linear_transpose(lambda w: _lax_conv(x, w, stride), w)(g)[0]


def _times(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x [..., C] times w [C, F], computed as one product of two matrices."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def _pointwise(x, w, stride):
    return _times(x[:, ::stride, ::stride], w[0, 0])


def _pointwise_by_x(g, x, w, stride):
    by_x = _times(g, w[0, 0].T)
    if stride == 1:
        return by_x
    pads = [(0, n - 2 * half + 1, 1) for n, half in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    return lax.pad(by_x, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _pointwise_by_w(g, x, w, stride):
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1]))[None, None]


# Taps of a 3-wide kernel of stride 2 that read input 2m (first) and 2m + 1 (second): pairs (tap,
# index of the output minus m).
_TAPS = (((1, 0),), ((2, 0), (0, 1)))


def _strided_by_x(g, x, w, stride):
    """Returns the gradient by x [B, H, W, C] of a 3x3 convolution of stride 2, g [B, H/2, ...]."""
    height, width = g.shape[1:3]
    padded = jnp.pad(g, ((0, 0), (0, 1), (0, 1), (0, 0)))
    w = w.swapaxes(2, 3)
    parts = [
        sum(
            _times(padded[:, i : i + height, j : j + width], w[a, b])
            for a, i in rows
            for b, j in columns
        )
        for rows in _TAPS
        for columns in _TAPS
    ]
    return _interleave(parts)[:, : x.shape[1], : x.shape[2]]


def _interleave(parts: Sequence[Any]) -> jax.Array:
    """Returns [B, 2H, 2W, C] of four parts: even rows (even, then odd columns), then odd rows."""
    rows = [jnp.stack(parts[i : i + 2], axis=3) for i in (0, 2)]
    batch, height, width, _, channels = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


# Transform of the kernel (Lavin and Gray, sec. 4.1).
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def _winograd(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with w [3, 3, C, F], padded by 1: [B, H, W, F].

    Each tile of 2x2 results takes 4x4 inputs and 16 products instead of 36.
    """
    height, width = x.shape[1:3]
    even_height, even_width = height + height % 2, width + width % 2
    padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    tiles = [
        [padded[:, i : i + even_height - 1 : 2, j : j + even_width - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    tiles = _transformed(_transform_input, tiles)
    transform = jnp.asarray(_G, w.dtype)
    kernel = jnp.einsum("ai,bj,ijcf->abcf", transform, transform, w)
    products = [[_times(tiles[i][j], kernel[i, j]) for j in range(4)] for i in range(4)]
    (a, b), (c, d) = _transformed(_transform_output, products)
    return _interleave((a, b, c, d))[:, :height, :width]


def _winograd_by_x(g, x, w, stride):
    return _winograd(g, w[::-1, ::-1].swapaxes(2, 3))


def _transform_input(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _transform_output(a, b, c, d):
    return a + b + c, b - c - d


def _transformed(transform, grid):
    """Returns a grid of arrays with each row transformed, and then each column."""
    rows = [transform(*row) for row in grid]
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))
