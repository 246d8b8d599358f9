"""The encoder: a backbone, a projection head, perhaps a predictor and a decoder, from a config."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.backbones import BACKBONES, Backbone, make_backbone
from moco_jax.models.decoder import Decoder, make_decoder, pixel_loss
from moco_jax.models.heads import make_head, make_predictor
from moco_jax.models.patches import split
from moco_jax.models.pretexts import contrasts, masks
from moco_jax.models.vit import ViT

# Output name -> method of Encoder.
FEATURES = {"backbone": "features", "head": "projection"}


class Encoder(nn.Module):
    """Maps images to L2-normalised queries or keys (MoCo, sec. 3.3).

    Only queries pass through the predictor (MoCo v3). Without one, a key is computed as a query is.
    Without a head, the unit vectors are the backbone's features. A decoder predicts the pixels of
    masked patches (MAE).
    """

    backbone: Backbone  # images [B, H, W, 3] to features f32[B, F]
    head: nn.Module | None = None  # features to f32[B, D]
    predictor: nn.Module | None = None  # f32[B, D] to f32[B, D]
    decoder: Decoder | None = None  # tokens to patches

    def __call__(self, images: jax.Array, *, train: bool = True) -> jax.Array:
        """Returns the queries of images [B, H, W, 3], unit vectors f32[B, D]."""
        if self.decoder is not None and self.is_initializing():
            patches = split(images, self._vit.patch)[0, ..., 0].size
            self.predict(images, jnp.zeros((len(images), patches), jnp.int32), 1, train=train)
        return self.queries(self.backbone(images, train=train), train=train)

    def queries(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the queries f32[B, D] of the backbone's features f32[B, F]."""
        x = self._projected(features, train)
        return _unit(x if self.predictor is None else self.predictor(x, train=train))

    def keys(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the keys f32[B, D] of the backbone's features f32[B, F]."""
        return _unit(self._projected(features, train))

    def predict(
        self, images: jax.Array, order: jax.Array, keep: int, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns features f32[B, F] of visible patches and predicted ones f32[B, L, p * p * 3].

        Args:
          images: [B, H, W, 3].
          order: i32[B, L], a permutation of the patches of each image.
          keep: the first patches of `order` are visible.
        """
        features, tokens = self._vit.masked(images, order[:, :keep], train=train)
        rows, columns = (side // self._vit.patch for side in images.shape[1:3])
        assert self.decoder is not None
        return features, self.decoder(tokens, order, rows, columns, train)

    def masked_loss(
        self, images: jax.Array, order: jax.Array, keep: int, *, normalizes: bool, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns features f32[B, F] of visible patches and f32[B], the loss on the masked ones."""
        features, predicted = self.predict(images, order, keep, train=train)
        patches = split(images, self._vit.patch).reshape(predicted.shape)
        return features, pixel_loss(predicted, patches, order, keep, normalizes=normalizes)

    @property
    def _vit(self) -> ViT:
        assert isinstance(self.backbone, ViT)  # a decoder has tokens
        return self.backbone

    def _projected(self, features: jax.Array, train: bool) -> jax.Array:
        return features if self.head is None else self.head(features, train=train)

    def features(self, images: jax.Array) -> jax.Array:
        """Returns the backbone's features f32[B, F], batch norm in evaluation mode."""
        return self.backbone(images, train=False)

    def projection(self, images: jax.Array) -> jax.Array:
        """Returns the keys f32[B, D] of images [B, H, W, 3], batch norm in evaluation mode."""
        return self.keys(self.backbone(images, train=False), train=False)


def of_keys(tree: Any) -> Any:
    """Returns parameters or batch statistics of queries without those that keys don't have."""
    return {name: part for name, part in tree.items() if name in ("backbone", "head")}


def has_batch_norm(config: Any) -> bool:
    """Returns whether a network has batch norm; False for an unknown backbone.

    Args:
      config: the keys of heads may be absent from its `model`.
    """
    model = config.model
    if not contrasts(config):
        return model.name in BACKBONES and make_backbone(model).batch_norm
    predictor = model.get("predictor_layers", 0)
    head = model.get("head") == "mlp_bn" or predictor > 1 or predictor and model.predictor_last_norm
    return model.name in BACKBONES and bool(head or make_backbone(model).batch_norm)


def norm_groups(config: Any) -> int:
    """Returns G, the groups of batch norm in training; 0 for a network without batch norm."""
    return config.bn_groups if has_batch_norm(config) else 0


def described_groups(groups: int) -> str:
    """Returns groups of batch norm in words; 0 is none."""
    return f"{groups} batch-norm group{'s' * (groups > 1)}" if groups else "no batch norm"


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The maximum bounds the gradient of the square root, which is infinite at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def make_encoder(config) -> Encoder:
    """Returns the encoder of a config; reads its `model`, `bn_groups`, `dtype`, `remat`
    and the keys of its pretext.

    Raises:
      ValueError: for an unknown backbone or head.
    """
    model, dtype = config.model, jnp.dtype(config.dtype)
    options = {"bn_groups": config.bn_groups, "dtype": dtype, "remat": config.remat}
    backbone = make_backbone(model, **options)
    contrastive = contrasts(config)
    return Encoder(
        backbone=backbone,
        head=make_head(config) if contrastive else None,
        predictor=make_predictor(config, hidden=backbone.features) if contrastive else None,
        decoder=make_decoder(config, backbone) if masks(config) else None,
    )
