"""Vision transformers (Dosovitskiy et al. 2021), initialised as in MoCo v3 (Chen et al. 2021)."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.models.layers.attention import attention
from moco_jax.models.layers.batch_norm import GroupedBatchNorm
from moco_jax.models.layers.gelu import gelu
from moco_jax.models.layers.product import product
from moco_jax.models.layers.repeated import repeated
from moco_jax.models.patches import select, split
from moco_jax.models.positions import sincos
from moco_jax.models.resnet import STEM_INITS, padded_conv
from moco_jax.parallel.platforms import materialized

STEMS = ("patch", "conv")
POOLS = ("cls", "mean")
POSITIONS = ("sincos", "sincos_mae", "learned")
_CONV_STEM_PATCH = 16  # pixels; four convolutions of stride 2
_MLP = 4  # hidden units of a block's MLP, times the embedding


class Init(NamedTuple):
    """The random weights of a ViT; those of other layers are xavier's.

    Attributes:
      qkv: the bound of the uniform weights of q, k and v, times the root of a token's length.
      token_std: standard deviation of the class token.
      patch_bias: whether the map of the patches has torch's bias of a convolution; otherwise 0.
    """

    qkv: float
    token_std: float
    patch_bias: bool


# The values of `config.model.vit_init`. MoCo v3 sees q, k and v as three layers, MAE as one.
INITS = {
    "moco_v3": Init(math.sqrt(3), 1e-6, patch_bias=False),
    "mae": Init(math.sqrt(1.5), 0.02, patch_bias=True),
}


class PatchEmbed(nn.Module):
    """Maps each patch of p x p pixels to a vector: images [B, H, W, C] to [B, L, dim]."""

    patch: int
    dim: int
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, chosen: jax.Array | None = None) -> jax.Array:
        """Returns vectors of the L patches, or of those with the indices `chosen` i32[B, n]."""
        p, channels = self.patch, images.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (p, p, channels, self.dim), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.dim,), jnp.float32)
        # A matrix product: on CPUs it is faster than a convolution of stride p.
        patches = split(images, p).reshape(len(images), -1, p * p * channels)
        if chosen is not None:
            patches = select(patches, chosen)
        patches = patches.astype(self.dtype)
        weights = kernel.reshape(-1, self.dim).astype(self.dtype)
        return patches @ weights + bias.astype(self.dtype)[None, None]


class Block(nn.Module):
    """A block of pre-norm attention and MLP. Maps tokens [B, T, d] to [B, T, d].

    Attributes:
      heads: of the attention; must divide d.
      drop: probability that an image skips a residual branch in training (Huang et al. 2016,
        stochastic depth), from the rng "drop_path".
      dtype: dtype of the products; the tokens keep theirs.
      init: of its weights.
    """

    heads: int
    drop: float = 0.0
    dtype: jnp.dtype = jnp.float32
    init: Init = INITS["moco_v3"]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        batch, tokens, dim = x.shape
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=_xavier(), dot_general=_product
        )
        norm = functools.partial(layer_norm, dtype=self.dtype)
        bound = self.init.qkv / math.sqrt(dim)
        y = dense(3 * dim, kernel_init=_uniform(bound), name="qkv")(norm(name="norm1")(x))
        y = attention(y.reshape(batch, tokens, 3, self.heads, -1))
        y = dense(dim, name="proj")(y)
        x = _stored(x + self._dropped(y, train))
        y = dense(_MLP * dim, name="fc1")(norm(name="norm2")(x))
        y = dense(dim, name="fc2")(gelu(y))
        return _stored(x + self._dropped(y, train))

    def _dropped(self, y: jax.Array, train: bool) -> jax.Array:
        """Returns a branch [B, T, d], zero for some images and scaled so that its mean stays."""
        if not train or not self.drop or self.is_initializing():
            return y
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.drop, (len(y), 1, 1))
        return jnp.where(kept, y / (1 - self.drop), 0)


class ViT(nn.Module):
    """A vision transformer without its classifier. Maps images [B, H, W, 3] to f32[B, dim].

    The tokens between the blocks are float32, as under torch's automatic mixed precision; so are
    the statistics of the layer norms and the softmax.

    Attributes:
      dim: length of a token and of the features; a multiple of 4.
      depth: number of blocks.
      heads: of the attention; must divide dim.
      patch: pixels of a patch's side; must divide the height and the width of the images.
      stem: 'patch' (a linear map of each patch) or 'conv' (four 3x3 convolutions of stride 2 with
        batch norm in `bn_groups` groups, then 1x1; Xiao et al. 2021).
      pool: the last norm has the class token ('cls') or the mean of the other tokens ('mean').
      positions: 'sincos' or 'sincos_mae' (fixed, in the orientation of MoCo v3 or of MAE; images
        of another size have other positions and the same parameters) or 'learned' (a parameter [1,
        1 + H/p * W/p, dim] for the class token and the patches, which starts as 0 and the sines and
        cosines; images have one size).
      vit_init: of the weights, a key of `INITS`.
      freeze_patch: whether the map of the patches keeps its random weights (MoCo v3, sec. 4).
      drop_path: probability that an image skips a branch of the last block in training; it grows
        linearly with the depth. Above 0, training needs an rng "drop_path".
      dtype: dtype of the products; parameters are float32.
      remat: whether the backward pass computes the activations inside each block again instead of
        storing them.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 16
    stem: str = "patch"
    pool: str = "cls"
    positions: str = "sincos"
    vit_init: str = "moco_v3"
    freeze_patch: bool = False
    drop_path: float = 0.0
    bn_groups: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @property
    def features(self) -> int:
        """Length of the features."""
        return self.dim

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parameters of the blocks, in order."""
        return tuple(f"block{i + 1}" for i in range(self.depth))

    @property
    def batch_norm(self) -> bool:
        """Whether it normalises over images: only the convolutions of a stem do."""
        return self.stem == "conv"

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that get no gradient."""
        return ("patch_embed",) if self.freeze_patch else ()

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns features f32[B, dim] of images [B, H, W, 3].

        Raises:
          ValueError: if the patch does not divide the size of the images, or learned positions are
            for another size.
        """
        return self._encode(images, None, train)[0]

    def masked(
        self, images: jax.Array, visible: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns features f32[B, dim] and tokens [B, 1 + n, dim] of visible patches.

        Only the class token and the patches with the indices `visible` i32[B, n] of the rows of an
        image pass the blocks (MAE, sec. 3). The tokens have passed the last norm.
        """
        return self._encode(images, visible, train)

    @nn.compact
    def _encode(self, images: jax.Array, visible: jax.Array | None, train: bool) -> tuple[Any, Any]:
        if problem := size_problem(self, *images.shape[1:3]):
            raise ValueError(problem)
        x = self._stem(images, train, visible)
        if self.freeze_patch:
            x = jax.lax.stop_gradient(x)
        batch, _, dim = x.shape
        rows, columns = (side // self.patch for side in images.shape[1:3])
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        first = self.param(
            "cls_token", nn.initializers.normal(self._init.token_std), (1, 1, dim), jnp.float32
        )
        first = first.astype(wide)
        if self.positions == "learned":
            positions = self._learned_positions(rows, columns).astype(wide)
            first, positions = first + positions[:, :1], positions[:, 1:]
        else:
            positions = sincos(rows, columns, dim, wide, self.positions == "sincos_mae")[None]
        if visible is not None:
            positions = jnp.broadcast_to(positions, (batch, *positions.shape[1:]))
            positions = select(positions, visible)
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, dim)), x + positions], axis=1)
        block = repeated(Block, self, remat=self.remat and train, static_argnums=(2,))
        for i, name in enumerate(self.blocks):
            drop = self.drop_path * i / max(1, self.depth - 1)
            x = block(self.heads, drop, self.dtype, self._init, name=name)(x, train)
        norm = layer_norm(dtype=wide, name="norm")
        features = norm(x[:, 0] if self.pool == "cls" else x[:, 1:].mean(axis=1))
        return features, None if visible is None else norm(x)

    @property
    def _init(self) -> Init:
        return INITS[self.vit_init]

    def _learned_positions(self, rows: int, columns: int) -> jax.Array:
        """Returns the parameter [1, 1 + rows * columns, dim]."""
        if self.has_variable("params", "positions"):
            known = self.get_variable("params", "positions").shape[1] - 1
            if known != rows * columns:
                was = math.isqrt(known) * self.patch
                sizes = f"{columns * self.patch} x {rows * self.patch}"
                raise ValueError(
                    f"the positions are learned (model.positions='learned') for images of {was} x "
                    f"{was} pixels, but the images have {sizes}; set data.image_size to {was}"
                )

        def init(key, shape, dtype=jnp.float32):
            fixed = sincos(rows, columns, self.dim, dtype)
            return jnp.pad(fixed, ((1, 0), (0, 0)))[None]

        return self.param("positions", init, (1, 1 + rows * columns, self.dim), jnp.float32)

    def _stem(self, images: jax.Array, train: bool, visible: jax.Array | None) -> jax.Array:
        """Returns the embedded patches [B, L, dim], or those that are visible."""
        x = images.astype(self.dtype)
        embed = functools.partial(PatchEmbed, dim=self.dim, dtype=self.dtype, name="patch_embed")
        if self.stem == "patch":
            inputs = 3 * self.patch**2
            kernel_init = _uniform(math.sqrt(6 / (inputs + self.dim)))
            of_torch, zeros = _uniform(1 / math.sqrt(inputs)), nn.initializers.zeros
            bias_init = of_torch if self._init.patch_bias else zeros
            return embed(self.patch, kernel_init=kernel_init, bias_init=bias_init)(x, visible)
        for i in range(1, 5):
            x = padded_conv(
                self.dim * 2**i // 16,
                3,
                2,
                kernel_init=STEM_INITS["fan_in"],
                dtype=self.dtype,
                name=f"stem_conv{i}",
            )(x)
            x = GroupedBatchNorm(
                self.bn_groups,
                use_running_average=not train,
                dtype=self.dtype,
                rectify=True,
                name=f"stem_norm{i}",
            )(x)
        init = _uniform(1 / math.sqrt(self.dim))  # the default of torch's Conv2d
        return embed(1, kernel_init=init, bias_init=init)(x, visible)


def _product(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """`product` with the arguments of `jax.lax.dot_general`."""
    return product(x, kernel)


@jax.custom_vjp
def _stored(x: jax.Array) -> jax.Array:
    """Returns x; on a CPU, it and its gradient are written to memory.

    Otherwise each block's gradient of a weight adds up the branches of all blocks behind it again.
    """
    return materialized(x, ("cpu",))


_stored.defvjp(lambda x: (_stored(x), None), lambda _, gradient: (_stored(gradient),))


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _xavier() -> nn.initializers.Initializer:
    return nn.initializers.xavier_uniform()


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Returns the layer norm of a ViT."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


# Values of `config.model.name`, with attributes of `ViT`. The small one has 12 heads as in MoCo v3;
# DeiT and timm have 6.
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny": dict(dim=192, depth=12, heads=3),
    "vit_small": dict(dim=384, depth=12, heads=12),
    "vit_base": dict(dim=768, depth=12, heads=12),
    "vit_large": dict(dim=1024, depth=24, heads=16),
    "vit_huge": dict(dim=1280, depth=32, heads=16),
}


def vit(
    name: str,
    *,
    stem: str = "patch",
    width: float = 1.0,
    heads: int = 0,
    depth: int = 0,
    **options,
) -> ViT:
    """Returns the backbone of a name, with further attributes of `ViT`.

    Args:
      stem: of `ViT`. With the convolutional stem, a named network has one block less.
      width: multiplies `dim`.
      heads, depth: 0 for those of the named network.
    """
    network = NETWORKS[name]
    return ViT(
        dim=round(network["dim"] * width),
        depth=depth or network["depth"] - (stem == "conv"),
        heads=heads or network["heads"],
        stem=stem,
        **options,
    )


def size_problem(network: ViT, height: int, width: int) -> str:
    """Returns what is wrong with the height and width of images, "" if nothing."""
    patch = network.patch
    if height % patch or width % patch:
        size = f"{height}" if height == width else f"{height} x {width}"
        return f"model.patch={patch} must divide the image size, {size} pixels"
    return ""


def patches(image_size: int) -> list[int]:
    """Returns the sides of the patches that split an image into several."""
    return [patch for patch in range(1, image_size // 2 + 1) if image_size % patch == 0]


def problems(network: ViT, image_size: int) -> Iterator[str]:
    """Yields what is wrong with a network made from a config; an image size of 0 is not known."""
    dim, heads, patch = network.dim, network.heads, network.patch
    if not dim or dim % 4:
        yield (
            f"model.width makes tokens of {dim} values; they must be a multiple of 4, for the "
            "position embeddings"
        )
    if dim % heads:
        yield f"model.heads={heads} must divide the {dim} values of a token"
    if network.stem == "conv":
        if patch != _CONV_STEM_PATCH:
            yield f"model.stem='conv' has patches of 16 pixels: model.patch must be 16, not {patch}"
        if dim % 8:
            yield f"model.stem='conv' needs tokens of a multiple of 8 values, not {dim}"
        if network.freeze_patch:
            yield "model.freeze_patch=True freezes the patch projection: use model.stem='patch'"
    if problem := size_problem(network, image_size, image_size):
        below = image_size // patch * patch
        sizes = f"{below} or {below + patch}" if below else f"{patch}"
        fitting = patches(image_size) if network.stem == "patch" else []
        near = [max((p for p in fitting if p < patch), default=0)]
        near += [min((p for p in fitting if p > patch), default=0)]
        also = " or ".join(str(p) for p in near if p)
        yield f"{problem}; data.image_size may be {sizes}{also and f', or model.patch {also}'}"
