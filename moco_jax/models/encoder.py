"""The encoder: a backbone and a projection head, from a config."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.heads import HEADS
from moco_jax.models.resnet import ResNet, resnet

# Output name -> method of Encoder.
FEATURES = {"backbone": "features", "head": "projection"}


class Encoder(nn.Module):
    """Maps images to L2-normalised keys or queries (MoCo, sec. 3.3)."""

    backbone: ResNet  # images [B, H, W, 3] to features f32[B, F]
    head: nn.Module  # features to f32[B, D]

    def __call__(self, images: jax.Array, *, train: bool = True) -> jax.Array:
        """Returns unit vectors f32[B, D] of images [B, H, W, 3]."""
        x = self.head(self.backbone(images, train=train))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # The maximum bounds the gradient of the square root, which is infinite at 0.
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))

    def features(self, images: jax.Array) -> jax.Array:
        """Returns the backbone's features f32[B, F], batch norm in evaluation mode."""
        return self.backbone(images, train=False)

    def projection(self, images: jax.Array) -> jax.Array:
        """Returns unit vectors f32[B, D], batch norm in evaluation mode."""
        return self(images, train=False)


def make_encoder(config) -> Encoder:
    """Returns the encoder of a config; reads its `model`, `bn_groups`, `dtype` and `remat`.

    Raises:
      ValueError: for an unknown backbone or head.
    """
    model, dtype = config.model, jnp.dtype(config.dtype)
    options = {"bn_groups": config.bn_groups, "dtype": dtype, "remat": config.remat}
    if model.head not in HEADS:
        raise ValueError(f"unknown model.head {model.head!r}; allowed: {', '.join(HEADS)}")
    stem = {"stem": model.stem, "stem_init": model.stem_init}
    backbone = resnet(model.name, width=model.width, **stem, **options)
    head = HEADS[model.head](dim=model.dim, hidden=model.hidden, dtype=dtype)
    return Encoder(backbone=backbone, head=head)
