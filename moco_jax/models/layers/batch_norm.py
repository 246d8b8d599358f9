"""Batch normalisation over groups of the batch, independent of the number of devices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.layers.relu import relu
from moco_jax.parallel.platforms import materialized


class GroupedBatchNorm(nn.Module):
    """Normalises each of `groups` contiguous parts of the batch by its own statistics.

    The paper's batch norm uses the images of one GPU (MoCo, sec. 3.3). Here the groups are a
    property of the model, not of the machine: `groups=8` computes on one device what eight GPUs
    compute. `groups=1` is synchronised batch norm.

    Statistics and running averages are float32. As in torch, the running variance averages the
    unbiased estimates (Flax's own BatchNorm uses the biased ones). The running averages are means
    over the groups, a departure from torch, which keeps those of the first GPU only.

    Attributes:
      groups: G, number of parts; must divide the batch size B.
      use_running_average: whether to normalise by the running averages (evaluation).
      momentum: fraction of the running average that is kept (.9 is torch's .1).
      epsilon: added to the variance.
      rectify: whether to apply a ReLU to the result; one backward pass then computes both
        gradients.
      affine: whether the result gets a trained scale and bias.
    """

    groups: int = 1
    use_running_average: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    rectify: bool = False
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [B, ..., C] normalised per group and channel, and rectified if asked for."""
        channels = x.shape[-1]
        if self.affine:
            scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        else:
            scale, bias = jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
        mean_avg = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var_avg = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.use_running_average:
            mean, var = mean_avg.value[None], var_avg.value[None]
            y = _scaled(_wide(x)[None], mean, var, scale, bias, self.epsilon)[0].astype(self.dtype)
            return relu(y) if self.rectify else y

        if x.shape[0] % self.groups:
            raise ValueError(f"bn_groups={self.groups} must divide the batch of {x.shape[0]}")
        grouped = x.reshape(self.groups, -1, *x.shape[1:])
        dtype = jnp.dtype(self.dtype)
        y, mean, var = _normalize(grouped, scale, bias, self.epsilon, dtype, self.rectify)
        if not self.is_initializing():
            # `_normalize` has no gradient for the statistics.
            mean, var = jax.lax.stop_gradient((mean, var))
            count = _count(grouped)
            mean_avg.value = self._running(mean_avg.value, mean)
            var_avg.value = self._running(var_avg.value, var * (count / max(count - 1, 1)))
        return y.reshape(x.shape)

    def _running(self, average: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * average + (1 - self.momentum) * new.mean(axis=0)


def _normalize_plain(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any, rectify: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x [G, B / G, ..., C] normalised, and the mean and the biased variance [G, C].

    The forward and the backward pass each read x twice, the minimum: once for the sums, once for
    the result. The gradient is written out for two reasons. For the gradient that JAX derives, XLA
    makes more passes on GPUs, and it rounds the two terms of a sum to bfloat16 separately.
    """
    wide, axes = _wide(x), _inner_axes(x)
    mean = wide.mean(axis=axes)
    # Both sums take one pass over x. The difference can round to below 0.
    var = jnp.maximum(jnp.square(wide).mean(axis=axes) - jnp.square(mean), 0.0)
    y = _scaled(wide, mean, var, scale, bias, epsilon).astype(dtype)
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
        """Returns x in float32 and the gradient before the ReLU, whose mask is computed from x."""
        wide = _wide(x)
        by_y = by_y.astype(wide.dtype)
        if rectify:
            y = _scaled(wide, mean, var, scale, bias, epsilon).astype(dtype)
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
    # With n = (x - mean) / std, the gradient by x is scale / std * (g - mean(g) - n * mean(g * n)).
    # Here it is a sum of three terms: a factor times g, a factor times x, and an offset.
    by_bias = sums[0]
    rstd = jax.lax.rsqrt(var + epsilon)
    by_scale = (sums[1] - mean * sums[0]) * rstd
    g_factor = rstd * scale[None]
    x_factor = -g_factor * rstd * by_scale / count
    offset = -g_factor * by_bias / count - x_factor * mean
    by_x = masked * _broadcast(g_factor, x) + wide * _broadcast(x_factor, x) + _broadcast(offset, x)
    by_scale, by_bias = (by.sum(axis=0).astype(scale.dtype) for by in (by_scale, by_bias))
    return by_x.astype(x.dtype), by_scale, by_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _scaled(x: jax.Array, mean, var, scale, bias, epsilon: float) -> jax.Array:
    """Returns the normalised x [G, B / G, ..., C] as a multiply-add, given statistics [G, C]."""
    factor = jax.lax.rsqrt(var + epsilon) * scale[None]
    offset = bias[None] - mean * factor
    return x * _broadcast(factor, x) + _broadcast(offset, x)


def _broadcast(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns values [G, C] in a shape that broadcasts over x [G, B / G, ..., C]."""
    return values.reshape(values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner_axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim - 1))


def _count(x: jax.Array) -> int:
    """Returns the number of values in each statistic of x [G, B / G, ..., C]."""
    return x.size // (x.shape[0] * x.shape[-1])
