"""The encoder: a backbone, a projection head and perhaps a predictor, from a config."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.backbones import BACKBONES, Backbone, make_backbone
from moco_jax.models.heads import make_head, make_predictor

# Output name -> method of Encoder.
FEATURES = {"backbone": "features", "head": "projection"}


class Encoder(nn.Module):
    """Maps images to L2-normalised queries or keys (MoCo, sec. 3.3).

    Only queries pass through the predictor (MoCo v3). Without one, a key is computed as a query is.
    """

    backbone: Backbone  # images [B, H, W, 3] to features f32[B, F]
    head: nn.Module  # features to f32[B, D]
    predictor: nn.Module | None = None  # f32[B, D] to f32[B, D]

    def __call__(self, images: jax.Array, *, train: bool = True) -> jax.Array:
        """Returns the queries of images [B, H, W, 3], unit vectors f32[B, D]."""
        return self.queries(self.backbone(images, train=train), train=train)

    def queries(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the queries f32[B, D] of the backbone's features f32[B, F]."""
        x = self.head(features, train=train)
        return _unit(x if self.predictor is None else self.predictor(x, train=train))

    def keys(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the keys f32[B, D] of the backbone's features f32[B, F]."""
        return _unit(self.head(features, train=train))

    def features(self, images: jax.Array) -> jax.Array:
        """Returns the backbone's features f32[B, F], batch norm in evaluation mode."""
        return self.backbone(images, train=False)

    def projection(self, images: jax.Array) -> jax.Array:
        """Returns the keys f32[B, D] of images [B, H, W, 3], batch norm in evaluation mode."""
        return self.keys(self.backbone(images, train=False), train=False)


def without_predictor(tree: Any) -> Any:
    """Returns an encoder's parameters or batch statistics without those of the predictor."""
    return {name: part for name, part in tree.items() if name != "predictor"}


def has_batch_norm(model: Any) -> bool:
    """Returns whether a network has batch norm; False for an unknown backbone.

    Args:
      model: of a config; the keys of heads may be absent.
    """
    predictor = model.get("predictor_layers", 0)
    head = model.get("head") == "mlp_bn" or predictor > 1 or predictor and model.predictor_last_norm
    return model.name in BACKBONES and bool(head or make_backbone(model).batch_norm)


def norm_groups(config: Any) -> int:
    """Returns G, the groups of batch norm in training; 0 for a network without batch norm."""
    return config.bn_groups if has_batch_norm(config.model) else 0


def described_groups(groups: int) -> str:
    """Returns groups of batch norm in words; 0 is none."""
    return f"{groups} batch-norm group{'s' * (groups > 1)}" if groups else "no batch norm"


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The maximum bounds the gradient of the square root, which is infinite at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def make_encoder(config) -> Encoder:
    """Returns the encoder of a config; reads its `model`, `bn_groups`, `dtype` and `remat`.

    Raises:
      ValueError: for an unknown backbone or head.
    """
    model, dtype = config.model, jnp.dtype(config.dtype)
    options = {"bn_groups": config.bn_groups, "dtype": dtype, "remat": config.remat}
    backbone = make_backbone(model, **options)
    predictor = make_predictor(config, hidden=backbone.features)
    return Encoder(backbone=backbone, head=make_head(config), predictor=predictor)
