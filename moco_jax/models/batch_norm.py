"""Batch normalisation over groups of the batch, however many devices hold it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.relu import relu
from moco_jax.parallel.platforms import materialized


class GroupedBatchNorm(nn.Module):
    """Normalises each of `groups` contiguous parts of the batch by its own statistics.

    The paper's batch norm sees the images of one GPU (MoCo, sec. 3.3). Here that is a property of
    the model, not of the machine: `groups=8` computes on one device what eight GPUs compute.
    `groups=1` is synchronised batch norm.

    Statistics and running averages are float32. As in torch, the running variance takes the
    unbiased estimate (Flax's own BatchNorm takes the biased one). The running averages are the
    mean over groups, a departure from torch, which keeps those of the first GPU only.

    Attributes:
      groups: G, the number of parts; must divide the batch B.
      use_running_average: whether to normalise by the running averages (evaluation).
      momentum: fraction of the running average that is kept (.9 is torch's .1).
      epsilon: added to the variance.
      dtype: dtype of the result.
      scale_init: initialiser of the scale.
      rectify: whether to apply a ReLU to the result; both gradients are then taken as one.
    """

    groups: int = 1
    use_running_average: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    rectify: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [B, ..., C] normalised per group and channel, and rectified if asked for."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean_avg = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var_avg = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.use_running_average:
            factor, offset = _fold(
                mean_avg.value[None], var_avg.value[None], scale, bias, self.epsilon
            )
            y = _scaled(_wide(x)[None], factor, offset)[0].astype(self.dtype)
            return relu(y) if self.rectify else y

        grouped = self._split(x)
        y, mean, var = _normalize(
            grouped, scale, bias, self.epsilon, jnp.dtype(self.dtype), self.rectify
        )
        if not self.is_initializing():
            # No gradient: `_normalize` has none for its statistics.
            mean, var = jax.lax.stop_gradient((mean, var))
            count = _count(grouped)
            mean_avg.value = self._running(mean_avg.value, mean)
            var_avg.value = self._running(var_avg.value, var * (count / max(count - 1, 1)))
        return y.reshape(x.shape)

    def _split(self, x: jax.Array) -> jax.Array:
        if x.shape[0] % self.groups:
            raise ValueError(f"a batch of {x.shape[0]} does not divide into {self.groups} groups")
        return x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])

    def _running(self, average: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * average + (1 - self.momentum) * new.mean(axis=0)


def _normalize_plain(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any, rectify: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x [G, B / G, ..., C] normalised, and the mean and the biased variance [G, C].

    Each direction is two passes over memory, the fewest that there can be: sums, then results. The
    gradient is written out, since of the one that JAX derives XLA makes more passes for GPUs, and
    it would round the sum's two parts to bfloat16 apart.
    """
    wide, axes = _wide(x), _inner_axes(x)
    mean = wide.mean(axis=axes)
    # Both sums in one pass over x; the squares' mean minus the mean's square can round below 0.
    var = jnp.maximum(jnp.square(wide).mean(axis=axes) - jnp.square(mean), 0.0)
    y = _scaled(wide, *_fold(mean, var, scale, bias, epsilon)).astype(dtype)
    return jax.nn.relu(y) if rectify else y, mean, var


_normalize = jax.custom_vjp(_normalize_plain, nondiff_argnums=(3, 4, 5))


def _normalize_forward(x, scale, bias, epsilon, dtype, rectify):
    y, mean, var = _normalize_plain(x, scale, bias, epsilon, dtype, rectify)
    return (y, mean, var), (x, scale, bias, mean, var)


def _normalize_backward(epsilon, dtype, rectify, saved, gradients):
    x, scale, bias, mean, var = saved
    by_y = gradients[0]
    if rectify:
        x, by_y = materialized((x, by_y))

    def load(x, by_y):
        """Returns x and the gradient before the ReLU, whose mask follows from x."""
        wide = _wide(x)
        by_y = by_y.astype(wide.dtype)
        if rectify:
            y = _scaled(wide, *_fold(mean, var, scale, bias, epsilon)).astype(dtype)
            by_y = jnp.where(y > 0, by_y, 0)
        return wide, by_y

    axes, count = _inner_axes(x), _count(x)
    wide, masked = load(x, by_y)
    sums = masked.sum(axis=axes), (masked * wide).sum(axis=axes)
    if rectify:
        sums, x, by_y = materialized((sums, x, by_y))
        wide, masked = load(x, by_y)
    else:
        sums = materialized(sums)
    # With n = (x - mean) / std the gradient by x is scale / std * (g - mean(g) - n * mean(g * n)),
    # here as factors of g and x and a rest.
    by_bias = sums[0]
    rstd = jax.lax.rsqrt(var + epsilon)
    by_scale = (sums[1] - mean * sums[0]) * rstd
    of_g = rstd * scale[None]
    of_x = -of_g * rstd * by_scale / count
    rest = -of_g * by_bias / count - of_x * mean
    by_x = masked * _each(of_g, x) + wide * _each(of_x, x) + _each(rest, x)
    by_scale, by_bias = (by.sum(axis=0).astype(scale.dtype) for by in (by_scale, by_bias))
    return by_x.astype(x.dtype), by_scale, by_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _fold(mean, var, scale, bias, epsilon) -> tuple[jax.Array, jax.Array]:
    """Returns the statistics as factor and offset [G, C]: one multiply and one add an element."""
    factor = jax.lax.rsqrt(var + epsilon) * scale[None]
    return factor, bias[None] - mean * factor


def _scaled(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    return x * _each(factor, x) + _each(offset, x)


def _each(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns values [G, C], to be broadcast over x [G, B / G, ..., C]."""
    return values.reshape(values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner_axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim - 1))


def _count(x: jax.Array) -> int:
    """Returns the number of values behind each of the statistics of x [G, B / G, ..., C]."""
    return x.size // (x.shape[0] * x.shape[-1])
