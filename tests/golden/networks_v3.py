"""The torch networks of MoCo v3's golden files: a bottleneck ResNet, a ViT and the MLP heads.

They share nothing with `moco_jax`; see `tests.golden.generate_v3`. Batch norm is torch's own on the
whole batch, which is synchronised batch norm on one GPU.
"""

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 2  # of the ResNet's first stage
BLOCKS = (2, 1, 1)  # in its stages; the second block has no projection in its shortcut
WIDTH, DEPTH, HEADS, PATCH = 12, 2, 3, 4  # of the ViT


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the stride in the 3x3."""

    def __init__(self, inputs, inner, stride):
        super().__init__()
        outputs = 4 * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A small ResNet-50; maps images [B, 3, S, S] to features [B, F]."""

    features = 16 * CHANNELS

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        inputs = CHANNELS
        for stage, blocks in enumerate(BLOCKS):
            inner, layers = CHANNELS * 2**stage, nn.Sequential()
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                layers.append(Bottleneck(inputs, inner, stride))
                inputs = 4 * inner
            self.add_module(f"layer{stage + 1}", layers)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))


class Attention(nn.Module):
    """Self-attention with the softmax written out."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, t, width = x.shape
        # The output of qkv is q, k and v in turn, each with the channels of one head together.
        size = width // self.heads
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) / size**0.5, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, width))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each after a layer norm and added to its input."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A small ViT; maps images [B, 3, S, S] to the class token's features [B, F].

    Its patch projection is frozen at its random weights.
    """

    features = WIDTH

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH).requires_grad_(False)
        self.blocks = nn.ModuleList(TransformerBlock(WIDTH, HEADS) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x):
        patches = self.patch_embed(x)
        rows, columns = patches.shape[2:]
        patches = patches.flatten(2).transpose(1, 2) + positions(rows, columns, WIDTH).to(x)
        x = torch.cat([self.cls_token.expand(len(x), 1, WIDTH), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def positions(rows, columns, width):
    """Returns [rows * columns, width]: sines and cosines of the row, then of the column."""
    quarter = width // 4
    table = torch.zeros(rows, columns, 4, quarter, dtype=torch.float64)
    for i in range(quarter):
        frequency = 10000.0 ** (-i / quarter)
        for axis, length in enumerate((rows, columns)):
            angle = frequency * torch.arange(length, dtype=torch.float64)
            angle = angle[:, None] if axis == 0 else angle[None, :]
            table[:, :, 2 * axis, i] = angle.sin()
            table[:, :, 2 * axis + 1, i] = angle.cos()
    return table.view(rows * columns, width)


def mlp(sizes, last_norm):
    """Returns a head: linear layers without bias, batch norm and ReLU between them.

    Args:
      sizes: lengths of the input, of the hidden layers and of the output.
      last_norm: whether batch norm without scale and bias follows the last layer.
    """
    layers = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(inputs, outputs, bias=False))
        if i < len(sizes) - 2:
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()]
        elif last_norm:
            layers.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*layers)
