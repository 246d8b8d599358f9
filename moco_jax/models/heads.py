"""Projection heads and the predictor, initialised as in the references: by torch's default."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.layers.batch_norm import GroupedBatchNorm


class LinearHead(nn.Module):
    """MoCo v1's head: one linear layer. Maps f32[B, F] to f32[B, dim]."""

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        return _linear(x, self.dim, self.dtype, "output")


class MLPHead(nn.Module):
    """MoCo v2's head: linear, ReLU, linear, without batch norm. Maps f32[B, F] to f32[B, dim]."""

    dim: int
    hidden: int = 0  # length of the hidden layer; 0: the length of the input, as in the reference
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        x = nn.relu(_linear(x, self.hidden or x.shape[-1], self.dtype, "hidden_layer"))
        return _linear(x, self.dim, self.dtype, "output")


class BatchNormMLP(nn.Module):
    """MoCo v3's projector and predictor: linear layers without bias, each before a batch norm.

    Maps f32[B, F] to f32[B, dim]. A ReLU follows each batch norm except the last one, which has no
    scale and no bias. Source: `_build_mlp` in moco-v3's `moco/builder.py`.

    Attributes:
      dim: length of the output.
      hidden: length of the hidden layers; 0: the length of the input.
      layers: number of linear layers.
      last_norm: whether a batch norm follows the last one.
      bn_groups: G, groups of the batch norms.
    """

    dim: int
    hidden: int = 0
    layers: int = 2
    last_norm: bool = True
    bn_groups: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        hidden = self.hidden or x.shape[-1]
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            features = self.dim if last else hidden
            x = _linear(x, features, self.dtype, f"layer{layer}", use_bias=False)
            if not last or self.last_norm:
                x = GroupedBatchNorm(
                    self.bn_groups,
                    use_running_average=not train,
                    dtype=self.dtype,
                    rectify=not last,
                    affine=not last,
                    name=f"norm{layer}",
                )(x)
        return x


def _linear(x: jax.Array, features: int, dtype, name: str, use_bias: bool = True) -> jax.Array:
    bound = 1 / math.sqrt(x.shape[-1])  # torch's default for the kernel and the bias

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=init, bias_init=init, name=name)(x)


def _batch_norm_mlp(config) -> BatchNormMLP:
    model = config.model
    return BatchNormMLP(
        dim=model.dim,
        hidden=model.hidden,
        layers=model.head_layers,
        bn_groups=config.bn_groups,
        dtype=jnp.dtype(config.dtype),
    )


# The values of `config.model.head`, with functions of the config; a new head is registered here.
HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda config: LinearHead(config.model.dim, jnp.dtype(config.dtype)),
    "mlp": lambda config: MLPHead(config.model.dim, config.model.hidden, jnp.dtype(config.dtype)),
    "mlp_bn": _batch_norm_mlp,
}


def make_head(config) -> nn.Module:
    """Returns the projection head of a config.

    Raises:
      ValueError: for an unknown head.
    """
    if config.model.head not in HEADS:
        allowed = ", ".join(HEADS)
        raise ValueError(f"unknown model.head {config.model.head!r}; allowed: {allowed}")
    return HEADS[config.model.head](config)


def make_predictor(config, hidden: int) -> BatchNormMLP | None:
    """Returns the predictor of a config, None without one.

    Args:
      config: has `model`, `bn_groups` and `dtype`.
      hidden: length of the hidden layers if `model.hidden` is 0.
    """
    model = config.model
    if not model.predictor_layers:
        return None
    return BatchNormMLP(
        dim=model.dim,
        hidden=model.hidden or hidden,
        layers=model.predictor_layers,
        last_norm=model.predictor_last_norm,
        bn_groups=config.bn_groups,
        dtype=jnp.dtype(config.dtype),
    )
