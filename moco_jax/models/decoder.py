"""The decoder of a masked autoencoder, and its loss (He et al. 2021, arXiv 2111.06377)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.layers.repeated import repeated
from moco_jax.models.patches import permute
from moco_jax.models.positions import sincos
from moco_jax.models.vit import INITS, Block, layer_norm

_EPSILON = 1e-6  # is added to the variance of a patch


class Decoder(nn.Module):
    """Maps the tokens of the visible patches to the pixels of all patches (MAE, sec. 3).

    Attributes:
      dim: length of its tokens; a multiple of 4.
      depth: number of blocks.
      heads: of the attention; must divide dim.
      values: of a patch, p * p * 3.
      columns_first: orientation of the positions, see `sincos`.
      dtype: dtype of the products; parameters are float32.
      remat: whether the backward pass computes the activations inside each block again.
    """

    dim: int
    depth: int
    heads: int
    values: int
    columns_first: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, order: jax.Array, rows: int, columns: int, train: bool
    ) -> jax.Array:
        """Returns the patches f32[B, L, values] of an image of `rows` x `columns` patches.

        Args:
          tokens: [B, 1 + n, d], the class token and the first n patches of `order`.
          order: i32[B, L], a permutation of the patches of each image.
        """
        init, xavier = INITS["mae"], nn.initializers.xavier_uniform()
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = nn.Dense(self.dim, dtype=self.dtype, kernel_init=xavier, name="embed")(tokens)
        x = x.astype(wide)
        masked = self.param(
            "mask_token", nn.initializers.normal(init.token_std), (1, 1, self.dim), jnp.float32
        )
        hidden = order.shape[1] + 1 - x.shape[1]
        hidden = jnp.broadcast_to(masked.astype(wide), (len(x), hidden, self.dim))
        patches = jnp.concatenate([x[:, 1:], hidden], axis=1)
        patches = permute(patches, jnp.argsort(order, axis=1), order)
        patches = patches + sincos(rows, columns, self.dim, wide, self.columns_first)[None]
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        block = repeated(Block, self, remat=self.remat and train, static_argnums=(2,))
        for i in range(1, self.depth + 1):
            x = block(self.heads, dtype=self.dtype, init=init, name=f"block{i}")(x, train)
        x = layer_norm(dtype=self.dtype, name="norm")(x)[:, 1:]
        x = nn.Dense(self.values, dtype=self.dtype, kernel_init=xavier, name="pixels")(x)
        return x.astype(wide)


def pixel_loss(
    predicted: jax.Array, patches: jax.Array, order: jax.Array, keep: int, *, normalizes: bool
) -> jax.Array:
    """Returns f32[B], the mean squared error on the masked patches of each image.

    Args:
      predicted: [B, L, values].
      patches: [B, L, values], of the image.
      order: i32[B, L]; the patches from `keep` on are masked.
      keep: number of visible patches.
      normalizes: whether the target is each patch minus its mean, divided by its standard deviation
        (MAE, sec. 4.1; its code has the unbiased variance).
    """
    target = patches.astype(predicted.dtype)
    if normalizes:
        target = normalized(target)
    masked = jnp.argsort(order, axis=1) >= keep
    errors = jnp.square(predicted - target).mean(axis=-1)
    return jnp.where(masked, errors, 0).sum(axis=1) / (order.shape[1] - keep)


def normalized(patches: jax.Array) -> jax.Array:
    """Returns patches [..., values], each with mean 0 and standard deviation 1."""
    return (patches - patches.mean(axis=-1, keepdims=True)) / _deviation(patches)


def denormalized(predicted: jax.Array, patches: jax.Array) -> jax.Array:
    """Returns normalised predictions [..., values] with the mean and deviation of the patches."""
    return predicted * _deviation(patches) + patches.mean(axis=-1, keepdims=True)


def _deviation(patches: jax.Array) -> jax.Array:
    return jnp.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + _EPSILON)


def make_decoder(config, backbone) -> Decoder:
    """Returns the decoder of a config with the keys of `decoder`, for the tokens of a ViT."""
    return Decoder(
        **config.decoder,
        values=3 * backbone.patch**2,
        columns_first=backbone.positions == "sincos_mae",
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )
