"""Residual networks, initialised and padded as in torchvision, which the reference uses."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.layers import convolution
from moco_jax.models.layers.batch_norm import GroupedBatchNorm
from moco_jax.models.layers.pooling import max_pool
from moco_jax.models.layers.relu import relu

STEMS = ("imagenet", "small")
# The values of `config.model.stem_init`. `fan_out` is torch's kaiming_normal_(mode="fan_out",
# nonlinearity="relu"), which torchvision's ResNet uses. `fan_in` is the default of torch's Conv2d.
STEM_INITS = {
    "fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "fan_in": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class Block(nn.Module):
    """A residual block. Maps [B, H, W, C] to [B, H/s, W/s, expansion * filters]."""

    filters: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    groups: int = 1
    base_width: int = 64
    dilation: int = 1
    zero_init: bool = False
    expansion: ClassVar[int]

    def last_norm(self) -> nn.Module:
        """Returns the norm before the sum with the shortcut."""
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        return self.norm(scale_init=init)


class BasicBlock(Block):
    """Two 3x3 convolutions (He et al. 2016)."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.filters, 3, self.strides, dilation=self.dilation)(x)
        y = self.norm(rectify=True)(y)
        y = self.conv(self.filters, 3, dilation=self.dilation)(y)
        y = self.last_norm()(y)
        return relu(y + _shortcut(self, x))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the stride in the 3x3 (torchvision's ResNet v1.5)."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.filters * self.base_width // 64 * self.groups
        y = self.norm(rectify=True)(self.conv(inner, 1)(x))
        y = self.conv(
            inner, 3, self.strides, dilation=self.dilation, feature_group_count=self.groups
        )(y)
        y = self.norm(rectify=True)(y)
        y = self.conv(self.filters * self.expansion, 1)(y)
        y = self.last_norm()(y)
        return relu(y + _shortcut(self, x))


def _shortcut(block: Block, x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C], projected if the block changes its shape."""
    features = block.filters * block.expansion
    if block.strides == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.strides, name="shortcut_conv")(x)
    return block.norm(name="shortcut_norm")(x)


class ResNet(nn.Module):
    """A ResNet without its classifier. Maps images [B, H, W, 3] to pooled features f32[B, F].

    Attributes:
      stage_sizes: blocks in each stage.
      stem: 'imagenet' (7x7 at stride 2, then max-pooling) or 'small' (3x3 at stride 1, no pooling),
        the reference's network for 32x32 images.
      stem_init: the random weights of the stem's convolution, one of STEM_INITS.
      width: multiplies the channels of every layer (R50w2x: 2).
      groups: groups of the 3x3 convolution (ResNeXt).
      base_width: channels per group in the first stage (ResNeXt, wide ResNets), before `width`
        multiplies them.
      dilated: whether the last stage keeps the resolution of the stage before and its 3x3
        convolutions have dilation 2, for dense prediction (MoCo, appendix, VOC segmentation). The
        parameters are the same. torchvision does not dilate the first of these convolutions.
      zero_init_residual: whether the last batch norm of each block starts with a scale of 0, so
        that the block is its shortcut (MoCo v3; Goyal et al. 2017).
      dtype: dtype of the computation; parameters and statistics are float32.
      remat: whether the backward pass computes the activations inside each block again instead of
        storing them.
    """

    stage_sizes: tuple[int, ...]
    block: type[Block]
    stem: str = "imagenet"
    stem_init: str = "fan_out"
    width: float = 1.0
    groups: int = 1
    base_width: int = 64
    bn_groups: int = 1
    dilated: bool = False
    zero_init_residual: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @property
    def features(self) -> int:
        """Length of the pooled features."""
        return self._channels(len(self.stage_sizes) - 1) * self.block.expansion

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parameters of the blocks, in order."""
        return tuple(
            f"stage{stage + 1}_block{i + 1}"
            for stage, blocks in enumerate(self.stage_sizes)
            for i in range(blocks)
        )

    @property
    def batch_norm(self) -> bool:
        """Whether it normalises over images: every layer does."""
        return True

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that get no gradient: none."""
        return ()

    def _channels(self, stage: int) -> int:
        return round(64 * self.width) * 2**stage

    @property
    def stride(self) -> int:
        """Image pixels between neighbouring positions of the last stage's maps."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (
            len(self.stage_sizes) - 1 - self.dilated
        )

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns features f32[B, F] of images [B, H, W, 3]."""
        x = self.maps(images, train=train)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))

    @nn.compact
    def maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the last stage's feature maps [B, ceil(H / stride), ceil(W / stride), F]."""
        conv = functools.partial(padded_conv, dtype=self.dtype)
        norm = functools.partial(
            GroupedBatchNorm, self.bn_groups, use_running_average=not train, dtype=self.dtype
        )
        kernel, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = images.astype(self.dtype)
        init = STEM_INITS[self.stem_init]
        x = conv(self._channels(0), kernel, strides, kernel_init=init, name="stem_conv")(x)
        x = norm(name="stem_norm", rectify=True)(x)
        if self.stem == "imagenet":
            x = max_pool(x)
        block = nn.remat(self.block) if self.remat and train else self.block
        for stage, blocks in enumerate(self.stage_sizes):
            dilated = self.dilated and stage == len(self.stage_sizes) - 1
            for i in range(blocks):
                x = block(
                    filters=self._channels(stage),
                    strides=2 if stage > 0 and i == 0 and not dilated else 1,
                    conv=conv,
                    norm=norm,
                    groups=self.groups,
                    base_width=self.base_width,
                    dilation=2 if dilated else 1,
                    zero_init=self.zero_init_residual,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x)
        return x


def padded_conv(
    features: int,
    kernel: int,
    strides: int = 1,
    dilation: int = 1,
    kernel_init: nn.initializers.Initializer = STEM_INITS["fan_out"],
    **kwargs,
) -> nn.Conv:
    """Returns a convolution padded as in torch: on both sides by half the dilated kernel."""
    pad = dilation * (kernel // 2)
    return nn.Conv(
        features,
        (kernel, kernel),
        strides,
        padding=pad,
        kernel_dilation=dilation,
        use_bias=False,
        kernel_init=kernel_init,
        conv_general_dilated=convolution.conv_general_dilated,
        **kwargs,
    )


# Values of `config.model.name`, with attributes of `ResNet`; a new ResNet is registered here.
NETWORKS: dict[str, dict[str, Any]] = {
    # One block per stage, for small images, first runs and tests.
    "resnet10": dict(stage_sizes=(1, 1, 1, 1), block=BasicBlock),
    "resnet18": dict(stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": dict(stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": dict(stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": dict(stage_sizes=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": dict(stage_sizes=(3, 8, 36, 3), block=Bottleneck),
    "resnext50_32x4d": dict(stage_sizes=(3, 4, 6, 3), block=Bottleneck, groups=32, base_width=4),
    "resnext101_32x8d": dict(stage_sizes=(3, 4, 23, 3), block=Bottleneck, groups=32, base_width=8),
    "resnext101_64x4d": dict(stage_sizes=(3, 4, 23, 3), block=Bottleneck, groups=64, base_width=4),
    # torchvision's networks: only the 3x3 convolutions are wide (R50w2x, width=2: every layer).
    "wide_resnet50_2": dict(stage_sizes=(3, 4, 6, 3), block=Bottleneck, base_width=128),
    "wide_resnet101_2": dict(stage_sizes=(3, 4, 23, 3), block=Bottleneck, base_width=128),
}
NAMES = tuple(NETWORKS)


def resnet(name: str, **options) -> ResNet:
    """Returns the backbone of a name, with further attributes of `ResNet`.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown model.name {name!r}; allowed: {', '.join(NAMES)}")
    return ResNet(**NETWORKS[name], **options)


def problems(network: ResNet, image_size: int) -> Iterator[str]:
    """Yields what is wrong with a network made from a config; it takes images of any size."""
    narrowest = 1 / min(64, network.base_width)
    if 0 < network.width < narrowest:
        yield (
            f"model.width={network.width} leaves layers without channels; at least {narrowest:.3g}"
        )
