"""The torch networks of the golden files of masked pretraining: an encoder and a pixel decoder.

They follow He et al. 2021 and share nothing with `moco_jax`; see `tests.golden.generate_mae`.
"""

import torch
from torch import nn

from tests.golden.networks_v3 import TransformerBlock, positions

WIDTH, DEPTH, HEADS, PATCH = 16, 2, 4, 4
DECODER_WIDTH, DECODER_HEADS = 8, 2


class MaskedViT(nn.Module):
    """A small ViT that sees a part of the patches.

    Args:
      frozen: whether the patch projection keeps its random weights.
      column_first: whether the first half of a position is of the column, as in MAE, or of the row.
    """

    features = WIDTH

    def __init__(self, frozen, column_first):
        super().__init__()
        self.column_first = column_first
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH).requires_grad_(not frozen)
        self.blocks = nn.ModuleList(TransformerBlock(WIDTH, HEADS) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def tokens(self, x, visible=None):
        """Returns [B, 1 + n, d]: the class token and the visible patches int64[B, n], or all."""
        patches = self.patch_embed(x)
        rows, columns = patches.shape[2:]
        patches = patches.flatten(2).transpose(1, 2)
        patches = patches + place(rows, columns, WIDTH, self.column_first).to(x)
        if visible is not None:
            patches = patches.gather(1, visible[:, :, None].expand(-1, -1, WIDTH))
        x = torch.cat([self.cls_token.expand(len(x), 1, WIDTH), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x):
        return self.tokens(x)[:, 0]


class Decoder(nn.Module):
    """Maps the encoder's tokens to the pixels of all patches, each in order (row, column, channel).

    Args:
      depth: number of blocks.
      column_first: as in `MaskedViT`.
    """

    def __init__(self, depth, column_first):
        super().__init__()
        self.column_first = column_first
        self.embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        blocks = (TransformerBlock(DECODER_WIDTH, DECODER_HEADS) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(DECODER_WIDTH, eps=1e-6)
        self.pixels = nn.Linear(DECODER_WIDTH, 3 * PATCH**2)

    def forward(self, tokens, visible, side):
        """Returns [B, side^2, 3 p^2] of tokens [B, 1 + n, d] of the class and visible patches."""
        tokens = self.embed(tokens)
        masked = self.mask_token.expand(len(tokens), side**2, DECODER_WIDTH)
        index = visible[:, :, None].expand(-1, -1, DECODER_WIDTH)
        patches = masked.scatter(1, index, tokens[:, 1:])
        patches = patches + place(side, side, DECODER_WIDTH, self.column_first).to(tokens)
        x = torch.cat([tokens[:, :1], patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x))[:, 1:]


def place(rows, columns, width, column_first):
    """Returns the positions [rows * columns, width] in one of the two orientations."""
    table = positions(rows, columns, width)
    if not column_first:
        return table
    return torch.cat([table[:, width // 2 :], table[:, : width // 2]], dim=1)


def visible_patches(noise, fraction):
    """Returns the indices int64[B, n] of the patches with the least noise [B, rows, columns]."""
    noise = noise.flatten(1)
    return noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - fraction))]


def pixel_loss(predicted, images, visible, normalized):
    """Returns the mean squared error of the patches that are not visible.

    Args:
      predicted: pixels [B, L, 3 p^2].
      images: [B, 3, S, S].
      visible: indices int64[B, n] of patches.
      normalized: whether each patch of the images is brought to mean 0 and variance 1. The variance
        is the unbiased one; 1e-6 is added to it.
    """
    b, channels, size, _ = images.shape
    side = size // PATCH
    target = images.view(b, channels, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1)
    target = target.reshape(b, side**2, -1)
    if normalized:
        mean = target.mean(2, keepdim=True)
        variance = ((target - mean) ** 2).sum(2, keepdim=True) / (target.shape[2] - 1)
        target = (target - mean) / (variance + 1e-6).sqrt()
    masked = torch.ones(b, side**2, dtype=target.dtype).scatter(1, visible, 0.0)
    return (((predicted - target) ** 2).mean(2) * masked).sum() / masked.sum()
