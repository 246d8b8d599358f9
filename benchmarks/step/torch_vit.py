"""MoCo v3's step with a ViT in PyTorch, written from the papers."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.step import worker

DIM = 256  # length of a key


class Size(NamedTuple):
    """A ViT, the sides of its images and patches in pixels, the hidden layers of the heads."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int


SIZES = {"vit": Size(224, 16, 384, 12, 12, 4096), "cifar_vit": Size(32, 4, 192, 6, 3, 1024)}


class Block(nn.Module):
    """A pre-norm block; attention by torch's scaled dot-product attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images [B, 3, S, S] to features [B, width] by a class token; the patch map is frozen."""

    def __init__(self, size: Size):
        super().__init__()
        self.patch = nn.Conv2d(3, size.width, size.patch, size.patch).requires_grad_(False)
        self.token = nn.Parameter(torch.zeros(1, 1, size.width))
        tokens = (size.image // size.patch) ** 2 + 1
        # The values do not matter for the speed.
        self.register_buffer("positions", torch.randn(1, tokens, size.width) * 0.02)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.norm(self.blocks(x))[:, 0]


def mlp(*widths: int) -> nn.Sequential:
    """Returns linear layers without bias, each with batch norm, the last one's without affine."""
    layers = []
    for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        last = i == len(widths) - 2
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def make_step(problem: worker.Problem, device: str, best: bool):
    """Returns a function of two views [B, 3, S, S] that trains one step and returns the loss."""
    size = SIZES[problem.name]
    temperature, momentum = 0.2, 0.99

    def encoder():
        heads = mlp(size.width, size.hidden, size.hidden, DIM)
        return nn.Sequential(ViT(size), heads).to(device)

    queries, keys, predictor = encoder(), encoder(), mlp(DIM, size.hidden, DIM).to(device)
    keys.load_state_dict(queries.state_dict())
    keys.requires_grad_(False)
    pairs = [list(m.parameters()) for m in (keys, queries)]
    trained = [p for m in (queries, predictor) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1.5e-4, weight_decay=0.1, fused=True)
    autocast = torch.autocast(device, torch.bfloat16, enabled=problem.dtype == "bfloat16")
    whole = nn.Sequential(queries, predictor)
    encode_queries = torch.compile(whole) if best else whole
    encode_keys = torch.compile(keys) if best else keys
    target = torch.arange(problem.batch, device=device)

    def contrast(q, k):
        q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
        return 2 * temperature * F.cross_entropy(q @ k.T / temperature, target)

    def step(first, second):
        with torch.no_grad(), autocast:
            torch._foreach_lerp_(*pairs, 1 - momentum)
            k1, k2 = encode_keys(first), encode_keys(second)
        with autocast:
            q1, q2 = encode_queries(first), encode_queries(second)
        loss = contrast(q1, k2) + contrast(q2, k1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
