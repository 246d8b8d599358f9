"""The FCN of MoCo's VOC segmentation: a dilated ResNet with output stride 16 and a head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.models.backbones import Backbone
from moco_jax.models.layers.batch_norm import GroupedBatchNorm
from moco_jax.models.resnet import ResNet, padded_conv


class Classifier(nn.Module):
    """Two dilated 3x3 convolutions with batch norm and ReLU, then a 1x1 convolution to classes."""

    classes: int  # C
    width: int = 256  # channels of the 3x3 convolutions
    dilation: int = 6  # of the 3x3 convolutions
    bn_groups: int = 1
    dtype: jnp.dtype = jnp.float32  # of the 3x3 convolutions; the scores are float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns scores f32[B, h, w, C] for feature maps [B, h, w, F]."""
        for i in (1, 2):
            x = padded_conv(
                self.width, 3, dilation=self.dilation, dtype=self.dtype, name=f"conv{i}"
            )(x)
            x = GroupedBatchNorm(
                groups=self.bn_groups,
                use_running_average=not train,
                dtype=self.dtype,
                rectify=True,
                name=f"norm{i}",
            )(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # N(0, 0.01), as in the reference's linear classifier; the paper does not specify it.
        init = nn.initializers.normal(0.01)
        return nn.Conv(self.classes, (1, 1), kernel_init=init, name="output")(x)


class FCN(nn.Module):
    """Scores the classes of each pixel with a dilated ResNet (MoCo, appendix, VOC segmentation)."""

    backbone: ResNet
    classifier: Classifier

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns scores f32[B, H, W, C] for images [B, H, W, 3]."""
        scores = self.classifier(self.backbone.maps(images, train=train), train=train)
        _, height, width, _ = images.shape
        return upsample(scores, (height, width), self.backbone.stride)


def upsample(scores: jax.Array, size: tuple[int, int], stride: int) -> jax.Array:
    """Returns scores [B, h, w, C] resized bilinearly to [B, H, W, C].

    Convolutions padded on both sides centre map column i on pixel i x stride, so column i is placed
    there. With 513 pixels and stride 16 this equals `align_corners=True`. Pixels beyond the last
    column get its values. `size` is (H, W); `stride` is in image pixels per map column.
    """
    down, across = (
        jnp.asarray(_weights(n, out, stride), scores.dtype)
        for n, out in zip(scores.shape[1:3], size, strict=True)
    )
    rows = jnp.einsum("byxc,Yy->bYxc", scores, down, precision="highest")
    return jnp.einsum("byxc,Xx->byXc", rows, across, precision="highest")


def _weights(length: int, out: int, stride: int) -> np.ndarray:
    """Returns interpolation weights f64[out, length]; each row sums to 1."""
    at = np.minimum(np.arange(out) / stride, length - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0)


def make_fcn(config: Any, backbone: Backbone) -> FCN:
    """Returns the network for a config's `classes`, `head`, `bn_groups` and `dtype`.

    Raises:
      ValueError: for a backbone without feature maps.
    """
    if not isinstance(backbone, ResNet):
        raise ValueError(
            "segmentation needs the feature maps of a ResNet; the encoder is a "
            f"{config.model.name}: give another --config.pretrained"
        )
    dtype = jnp.dtype(config.dtype)
    classifier = Classifier(config.classes, **config.head, bn_groups=config.bn_groups, dtype=dtype)
    return FCN(backbone.clone(dilated=True), classifier)
