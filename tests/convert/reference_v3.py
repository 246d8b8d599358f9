"""Makes checkpoints of MoCo v3's authors with torch, in the published format.

The ViT has timm's names and is written with torch alone. The ResNet is torchvision's.
"""

import math

from tests.weights.networks import library, randomise

BATCH, SIZE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 4, 32, 2, 4
DIM, HIDDEN = 16, 24
MOMENTUM, TEMPERATURE = 0.9, 0.2


def table(rows: int, width: int):
    """Returns the fixed positions [1, 1 + rows * rows, width]; a patch's row comes first."""
    torch = library("torch")
    result = torch.zeros(1, 1 + rows * rows, width, dtype=torch.float64)
    for patch in range(rows * rows):
        for axis, place in enumerate(divmod(patch, rows)):
            for i in range(width // 4):
                angle = place / 10_000 ** (i / (width // 4))
                start = axis * width // 2
                result[0, 1 + patch, start + i] = math.sin(angle)
                result[0, 1 + patch, start + width // 4 + i] = math.cos(angle)
    return result


def _classes():
    torch = library("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            parts = self.qkv(x).reshape(len(x), -1, 3, HEADS, WIDTH // HEADS)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            return self.fc2(functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=1e-6), Attention()
            self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-6), Mlp()

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class PatchEmbed(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            if conv:
                widths, layers = [3, *(WIDTH // 8 * 2**i for i in range(4))], []
                for before, after in zip(widths, widths[1:], strict=False):
                    layers.append(nn.Conv2d(before, after, 3, 2, 1, bias=False))
                    layers += [nn.BatchNorm2d(after), nn.ReLU()]
                self.proj = nn.Sequential(*layers, nn.Conv2d(WIDTH, WIDTH, 1))

        def forward(self, images):
            return self.proj(images).flatten(2).transpose(1, 2)

    class ViT(nn.Module):
        def __init__(self, frozen, conv):
            super().__init__()
            rows = 2
            self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
            self.pos_embed = nn.Parameter(table(rows, WIDTH).float(), requires_grad=False)
            self.patch_embed = PatchEmbed(conv)
            self.patch_embed.requires_grad_(not frozen)
            self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
            self.head = nn.Identity()

        def forward(self, images):
            x = self.patch_embed(images)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            return self.head(self.norm(self.blocks(x))[:, 0])

    return ViT


def _mlp(layers: int, inputs: int, last_norm: bool):
    nn = library("torch").nn
    parts = []
    for layer in range(layers):
        last = layer == layers - 1
        outputs = DIM if last else HIDDEN
        parts.append(nn.Linear(inputs, outputs, bias=False))
        if not last:
            parts += [nn.BatchNorm1d(outputs), nn.ReLU()]
        elif last_norm:
            parts.append(nn.BatchNorm1d(outputs, affine=False))
        inputs = outputs
    return nn.Sequential(*parts)


def _encoder(kind: str):
    torch, models = library("torch"), library("torchvision").models.resnet
    if kind == "resnet":
        network = models.ResNet(models.BasicBlock, [1, 1, 1, 1])
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
        network.fc = torch.nn.Identity()
        randomise(network).fc = _mlp(2, 512, last_norm=True)
        return network
    network = _classes()(frozen=kind == "vit", conv=kind == "conv")
    network.head = _mlp(3, WIDTH, last_norm=True)
    torch.nn.init.normal_(network.cls_token)
    return network


def moco(kind: str = "vit"):
    """Returns an untrained MoCo whose arrays have the reference's names and order.

    It follows the paper's algorithm 1: calling it with two views returns the loss and updates the
    key encoder.

    Args:
      kind: 'vit' (with frozen patches), 'conv' (a ViT with the convolutional stem) or 'resnet'.
    """
    torch = library("torch")
    functional = torch.nn.functional
    torch.manual_seed(0)

    class MoCo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_encoder, self.momentum_encoder = _encoder(kind), _encoder(kind)
            self.momentum_encoder.requires_grad_(False)
            self.predictor = _mlp(2, DIM, last_norm=kind != "resnet")

        def forward(self, first, second):
            both = first, second
            q = [functional.normalize(self.predictor(self.base_encoder(x))) for x in both]
            with torch.no_grad():
                for key, query in zip(
                    self.momentum_encoder.parameters(), self.base_encoder.parameters(), strict=True
                ):
                    key.copy_(MOMENTUM * key + (1 - MOMENTUM) * query)
                k = [functional.normalize(self.momentum_encoder(x)) for x in both]
            own = torch.arange(len(first))
            losses = [
                functional.cross_entropy(one @ other.T / TEMPERATURE, own)
                for one, other in zip(q, k[::-1], strict=True)
            ]
            return 2 * TEMPERATURE * sum(losses)

    return MoCo()


def optimizer_of(model, kind: str, **options):
    """Returns AdamW, or for a ResNet an optimizer with the parts of the reference's LARS."""
    torch = library("torch")
    if kind != "resnet":
        options = {"lr": 1e-3, "weight_decay": 0.1} | options
        return torch.optim.AdamW(model.parameters(), **options)

    class LARS(torch.optim.Optimizer):
        def __init__(self, parameters):
            defaults = {"lr": 0.1, "weight_decay": 1e-6, "momentum": 0.9}
            super().__init__(parameters, defaults | {"trust_coefficient": 0.001} | options)

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    update = p.grad
                    if p.ndim > 1:
                        update = update + group["weight_decay"] * p
                        ratio = p.norm() / update.norm()
                        update = update * (group["trust_coefficient"] * ratio)
                    mean = self.state[p].setdefault("mu", torch.zeros_like(p))
                    mean.mul_(group["momentum"]).add_(update)
                    p.sub_(group["lr"] * mean)

    return LARS(model.parameters())


def train(model, optimizer, views) -> float:
    """Takes one step; returns the loss."""
    model.train()
    loss = model(*views)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def checkpoint(kind: str, model, *, epochs: int, epoch_steps: int, views) -> dict:
    """Returns the reference's checkpoint, with the counters of `epochs * epoch_steps` steps."""
    torch = library("torch")
    optimizer = optimizer_of(model, kind)
    for _ in range(2):
        train(model, optimizer, views)
    steps = epochs * epoch_steps
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(2 * steps)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(steps)
    return {
        "epoch": epochs,
        "arch": "vit_small",
        "state_dict": {f"module.{name}": x for name, x in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def resume(path, model, kind: str, *, double: bool = False):
    """Loads a checkpoint as the reference's --resume does; returns the optimizer and the epoch."""
    torch = library("torch")
    parallel = torch.nn.DataParallel(model)
    optimizer = optimizer_of(model, kind)
    content = torch.load(path, weights_only=True)
    parallel.load_state_dict(content["state_dict"])
    if double:
        model.double()
    optimizer.load_state_dict(content["optimizer"])
    torch.amp.GradScaler("cpu").load_state_dict(content["scaler"])
    return optimizer, content["epoch"]
