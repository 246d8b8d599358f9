"""Batch normalisation over groups of the batch, however many devices hold it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


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
      momentum: share of the running average that is kept (.9 is torch's .1).
      epsilon: added to the variance.
      dtype: dtype of the result.
      scale_init: initialiser of the scale.
    """

    groups: int = 1
    use_running_average: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [B, ..., C] normalised per group and channel."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean_avg = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var_avg = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        grouped = self._split(x)
        if self.use_running_average:
            mean, var = mean_avg.value[None], var_avg.value[None]
        else:
            mean, var, count = _moments(grouped)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                mean_avg.value = self._running(mean_avg.value, mean)
                var_avg.value = self._running(var_avg.value, unbiased)

        # One multiply and one add per element: the statistics are folded into [G, C] factors.
        factor = jax.lax.rsqrt(var + self.epsilon) * scale[None]
        offset = bias[None] - mean * factor
        inner = (1,) * (grouped.ndim - 2)
        factor = factor.reshape(factor.shape[0], *inner, channels)
        offset = offset.reshape(offset.shape[0], *inner, channels)
        return (grouped * factor + offset).astype(self.dtype).reshape(x.shape)

    def _split(self, x: jax.Array) -> jax.Array:
        groups = 1 if self.use_running_average else self.groups
        if x.shape[0] % groups:
            raise ValueError(f"a batch of {x.shape[0]} does not divide into {groups} groups")
        return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])

    def _running(self, average: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * average + (1 - self.momentum) * new.mean(axis=0)


def _moments(grouped: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Returns mean [G, C], biased variance [G, C] and the number of values behind each."""
    x = grouped.astype(jnp.promote_types(grouped.dtype, jnp.float32))
    axes = tuple(range(1, x.ndim - 1))
    mean = x.mean(axis=axes)
    # Both sums in one pass over x; the squares' mean minus the mean's square can round below 0.
    var = jnp.maximum(jnp.square(x).mean(axis=axes) - jnp.square(mean), 0.0)
    return mean, var, x.size // (x.shape[0] * x.shape[-1])
