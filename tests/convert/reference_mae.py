"""Makes checkpoints of MAE's authors with torch, in the published format.

The network is written from the paper, with the names and the order of the published arrays.
"""

import argparse

from tests.convert.reference_v3 import table as of_rows
from tests.weights.networks import library

BATCH, SIZE, PATCH = 32, 16, 4
WIDTH, DEPTH, HEADS = 32, 2, 4
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 16, 1, 2
RATIO, EPSILON = 0.75, 1e-6
BETAS = 0.9, 0.95


def table(rows: int, width: int):
    """Returns MAE's positions [1, 1 + rows * rows, width]; a patch's column comes first."""
    torch, half = library("torch"), width // 2
    found = of_rows(rows, width)
    return torch.cat([found[..., half:], found[..., :half]], dim=-1)


def _block(width: int, heads: int):
    """Returns a block with timm's names."""
    torch = library("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = self.qkv(x).reshape(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / (d // heads) ** 0.5).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            return self.fc2(functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(width, eps=EPSILON), Attention()
            self.norm2, self.mlp = nn.LayerNorm(width, eps=EPSILON), Mlp()

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    return Block()


def _patch_embed(width: int, patch: int):
    torch = library("torch")

    class PatchEmbed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Conv2d(3, width, patch, patch)

        def forward(self, images):
            return self.proj(images).flatten(2).transpose(1, 2)

    return PatchEmbed()


def network(size: int = SIZE, patch: int = PATCH, **options):
    """Returns a masked autoencoder; its options have the names of MAE's code.

    Calling it with images [B, 3, S, S] and noise [B, L] returns the loss.
    """
    torch = library("torch")
    nn = torch.nn
    width, depth = options.get("embed_dim", WIDTH), options.get("depth", DEPTH)
    narrow = options.get("decoder_embed_dim", DECODER_WIDTH)
    normalizes = options.get("norm_pix_loss", True)

    def fixed(positions):
        return nn.Parameter(positions.float(), requires_grad=False)

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            rows = size // patch
            heads = options.get("num_heads", HEADS), options.get("decoder_num_heads", DECODER_HEADS)
            self.patch_embed = _patch_embed(width, patch)
            self.cls_token = nn.Parameter(torch.randn(1, 1, width))
            self.pos_embed = fixed(table(rows, width))
            self.blocks = nn.ModuleList(_block(width, heads[0]) for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=EPSILON)
            self.decoder_embed = nn.Linear(width, narrow)
            self.mask_token = nn.Parameter(torch.randn(1, 1, narrow))
            self.decoder_pos_embed = fixed(table(rows, narrow))
            count = options.get("decoder_depth", DECODER_DEPTH)
            self.decoder_blocks = nn.ModuleList(_block(narrow, heads[1]) for _ in range(count))
            self.decoder_norm = nn.LayerNorm(narrow, eps=EPSILON)
            self.decoder_pred = nn.Linear(narrow, 3 * patch**2)

        def encode(self, images, kept=None):
            """Returns tokens of the kept patches int64[B, n], or of all."""
            x = self.patch_embed(images) + self.pos_embed[:, 1:]
            if kept is not None:
                x = x.gather(1, kept[:, :, None].expand(-1, -1, width))
            first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat([first, x], 1)
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

        def forward(self, images, noise):
            count = noise.shape[1]
            kept = noise.argsort(1)[:, : int(count * (1 - RATIO))]
            tokens = self.decoder_embed(self.encode(images, kept))
            index = kept[:, :, None].expand(-1, -1, narrow)
            patches = self.mask_token.expand(len(images), count, narrow)
            patches = patches.scatter(1, index, tokens[:, 1:])
            x = torch.cat([tokens[:, :1], patches], 1) + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x)
            predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
            rows = size // patch
            target = images.reshape(-1, 3, rows, patch, rows, patch).permute(0, 2, 4, 3, 5, 1)
            target = target.reshape(len(images), count, -1)
            if normalizes:
                variance = target.var(-1, keepdim=True)
                target = (target - target.mean(-1, keepdim=True)) / (variance + 1e-6) ** 0.5
            hidden = torch.ones_like(noise).scatter(1, kept, 0.0)
            errors = ((predicted - target) ** 2).mean(-1)
            return (errors * hidden).sum() / hidden.sum()

    torch.manual_seed(0)
    return Autoencoder()


def optimizer_of(model):
    """Returns AdamW with MAE's two groups: vectors first, without decay, then the others."""
    torch = library("torch")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=BETAS)


def train(model, optimizer, images, noise) -> float:
    """Takes one step; returns the loss."""
    loss = model(images, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def checkpoint(model, *, epochs: int, steps: int, images, noise) -> dict:
    """Returns MAE's checkpoint with the counters of `steps` steps in `epochs` epochs."""
    torch, optimizer = library("torch"), optimizer_of(model)
    for _ in range(2):
        train(model, optimizer, images, noise)
    for state in optimizer.state.values():
        state["step"].fill_(steps)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epochs - 1,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(mask_ratio=RATIO, norm_pix_loss=True, lr=None, device="cpu"),
    }


def resume(path, model, *, double: bool = False):
    """Loads a checkpoint as MAE's --resume does; returns the optimizer and the next epoch."""
    torch = library("torch")
    content = torch.load(path, weights_only=True)
    model.load_state_dict(content["model"], strict=True)
    if double:
        model.double()
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(content["optimizer"])
    torch.amp.GradScaler("cpu").load_state_dict(content["scaler"])
    return optimizer, content["epoch"] + 1
