"""MoCo in plain torch, float64 on a CPU: what the JAX step is compared with.

Written from the papers alone (He et al. 2019, Chen et al. 2020) and from the recipes of their
reference code, as one would write it in torch; it shares nothing with `moco_jax`. It trains a tiny
ResNet for five steps in each of seven recipes and writes one .npz a recipe: the images, the
weights at the start and all that the five steps leave behind, under torch's names.

Where `moco_jax` departs from torch knowingly, its rule is followed here:
- running averages of a split batch norm are the mean over the groups', not the first GPU's;
- the permutation of the keys is fixed: the transpose of the batch laid out as [groups, B/groups].

    python -m tests.golden.generate [OUT]     needs torch and numpy
"""

import dataclasses
import math
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

STEPS = 5
GROUPS = 8  # GPUs, in the papers
CHANNELS = 2  # of the first stage
DIM = 8  # of a key: D
FEATURES = 8 * CHANNELS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train, in the papers' terms.

    Attributes:
      stem: 'imagenet' or 'cifar'.
      mlp: whether the head has a hidden layer (v2).
      pixels: side of the images.
      batch: B.
      queue: K, keys in the queue.
      symmetric: whether each view is query and key in turn.
      epochs: length of the schedule, of which the first five steps are run.
      epoch_steps: steps of an epoch.
      milestones: epochs at which the rate falls to a tenth; none: half a cosine.
      mechanism: 'moco', 'end_to_end', 'simclr', 'bank' or 'bank_nce'.
    """

    stem: str
    mlp: bool
    pixels: int
    batch: int
    queue: int
    temperature: float
    momentum: float
    lr: float
    weight_decay: float
    epochs: int
    epoch_steps: int
    milestones: tuple[int, ...] = ()
    symmetric: bool = False
    mechanism: str = "moco"


RECIPES = {
    # v1 drops at epochs 120 and 160 of 200, which are 3 and 4 of 5. Three batches fill the queue.
    "v1": Recipe(
        stem="imagenet",
        mlp=False,
        pixels=16,
        batch=64,
        queue=3 * 64,
        temperature=0.07,
        momentum=0.999,
        lr=0.03,
        weight_decay=1e-4,
        epochs=5,
        epoch_steps=1,
        milestones=(3, 4),
    ),
    "v2": Recipe(
        stem="cifar",
        mlp=True,
        pixels=16,
        batch=32,
        queue=4 * 32,
        temperature=0.2,
        momentum=0.999,
        lr=0.03,
        weight_decay=1e-4,
        epochs=4,
        epoch_steps=2,
    ),
    "cifar_symmetric": Recipe(
        stem="cifar",
        mlp=False,
        pixels=16,
        batch=32,
        queue=4 * 32,
        temperature=0.1,
        momentum=0.99,
        lr=0.06,
        weight_decay=5e-4,
        epochs=3,
        epoch_steps=2,
        symmetric=True,
    ),
    "end_to_end": Recipe(
        stem="cifar",
        mlp=False,
        pixels=16,
        batch=32,
        queue=0,
        temperature=0.1,
        momentum=0.99,
        lr=0.06,
        weight_decay=5e-4,
        epochs=3,
        epoch_steps=2,
        mechanism="end_to_end",
    ),
    "simclr": Recipe(
        stem="cifar",
        mlp=True,
        pixels=16,
        batch=32,
        queue=0,
        temperature=0.5,
        momentum=0.99,
        lr=0.03,
        weight_decay=5e-4,
        epochs=3,
        epoch_steps=2,
        symmetric=True,
        mechanism="simclr",
    ),
}
BANK = Recipe(
    stem="cifar",
    mlp=False,
    pixels=16,
    batch=32,
    queue=48,  # negatives a step
    temperature=0.1,
    momentum=0.5,  # of the slots
    lr=0.06,
    weight_decay=5e-4,
    epochs=3,
    epoch_steps=2,
    mechanism="bank",
)
RECIPES |= {"bank": BANK, "bank_nce": dataclasses.replace(BANK, lr=0.03, mechanism="bank_nce")}
IMAGES = 80  # slots of a bank, of which a step sees 32


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm as `GROUPS` GPUs compute it, each on its part of the batch."""

    def forward(self, x):
        outputs, means, variances = [], [], []
        for part in x.chunk(GROUPS):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(
                F.batch_norm(
                    part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps
                )
            )
            means.append(mean)
            variances.append(variance)
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(outputs)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = SplitBatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = SplitBatchNorm(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), SplitBatchNorm(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Encoder(nn.Module):
    """ResNet-10 and a head: images [B, 3, S, S] to unit vectors [B, D]."""

    def __init__(self, recipe):
        super().__init__()
        if recipe.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, CHANNELS, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = SplitBatchNorm(CHANNELS)
        self.layer1 = nn.Sequential(Block(CHANNELS, CHANNELS, 1))
        self.layer2 = nn.Sequential(Block(CHANNELS, 2 * CHANNELS, 2))
        self.layer3 = nn.Sequential(Block(2 * CHANNELS, 4 * CHANNELS, 2))
        self.layer4 = nn.Sequential(Block(4 * CHANNELS, FEATURES, 2))
        if recipe.mlp:
            self.fc = nn.Sequential(
                nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, DIM)
            )
        else:
            self.fc = nn.Linear(FEATURES, DIM)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.normalize(self.fc(x.mean((2, 3))), dim=1)


class MoCo(nn.Module):
    """Both encoders and the queue."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        self.encoder_q = Encoder(recipe)
        self.encoder_k = Encoder(recipe)
        # Batch norm starts at 1 and 0; moved, so that exchanging the two would show.
        for name, parameter in self.encoder_q.named_parameters():
            if parameter.ndim == 1 and "fc" not in name:
                nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.1)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(recipe.queue, DIM), dim=1))
        self.pointer = 0

    @torch.no_grad()
    def momentum_update(self):
        m = self.recipe.momentum
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.mul_(m).add_(q, alpha=1 - m)

    def encode_mixed(self, encoder, images):
        """Encodes them among other images than their queries, and returns them in their order."""
        order = torch.arange(len(images)).view(GROUPS, -1).t().reshape(-1)
        return encoder(images[order])[order.argsort()]

    @torch.no_grad()
    def encode_keys(self, images):
        return self.encode_mixed(self.encoder_k, images)

    @torch.no_grad()
    def enqueue(self, keys):
        self.queue[self.pointer : self.pointer + len(keys)] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)

    def contrast(self, query_images, key_images):
        """Returns the loss of one direction, and its keys."""
        q = self.encoder_q(query_images)
        k = self.encode_keys(key_images)
        positive = (q * k).sum(1, keepdim=True)
        negative = q @ self.queue.clone().t()  # the gradient needs it as it was
        logits = torch.cat([positive, negative], 1) / self.recipe.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), k

    def forward(self, one, two):
        """Returns the loss of two views [B, 3, S, S]; the queue takes in the keys."""
        self.momentum_update()
        loss, keys = self.contrast(one, two)
        if self.recipe.symmetric:
            other, more = self.contrast(two, one)
            loss, keys = loss + other, torch.cat([keys, more])
        self.enqueue(keys)
        return loss


class EndToEnd(MoCo):
    """Two encoders, both trained; a query's negatives are the other keys of the batch (fig. 2a)."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.encoder_k.requires_grad_(True)

    def forward(self, one, two):
        q, k = self.encoder_q(one), self.encode_mixed(self.encoder_k, two)
        return F.cross_entropy(q @ k.t() / self.recipe.temperature, torch.arange(len(q)))


class SimCLR(MoCo):
    """One encoder, and NT-Xent over both views (Chen et al. 2020, eq. 1)."""

    def forward(self, one, two):
        z = torch.cat([self.encoder_q(one), self.encode_mixed(self.encoder_q, two)])
        logits = (z @ z.t() / self.recipe.temperature).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(z)).roll(len(one))
        # The mean over all 2B, twice: the sum of both directions' means, as in the symmetric form.
        return 2 * F.cross_entropy(logits, partner)


class Bank(MoCo):
    """A memory bank, the negatives of each step drawn from it (MoCo, fig. 2b).

    Which images a step sees, and which slots it draws, is drawn here; InfoNCE draws none of the
    batch's own.
    """

    noise = False

    def __init__(self, recipe):
        super().__init__(recipe)
        self.encoder_k = nn.Module()
        self.register_buffer("queue", F.normalize(torch.randn(IMAGES, DIM), dim=1))
        self.indices = torch.stack([torch.randperm(IMAGES)[: recipe.batch] for _ in range(STEPS)])
        self.drawn = torch.stack([self.draw(seen) for seen in self.indices])
        self.step = 0

    def draw(self, seen):
        pool = torch.arange(IMAGES)
        if not self.noise:
            pool = pool[~torch.isin(pool, seen)]
        return pool[torch.randint(len(pool), (self.recipe.queue,))]

    def forward(self, one, two):
        seen, drawn = self.indices[self.step], self.drawn[self.step]
        v = self.encoder_q(one)
        own = (v * self.queue[seen]).sum(1, keepdim=True) / self.recipe.temperature
        others = v @ self.queue[drawn].t() / self.recipe.temperature
        loss = self.loss(own, others)
        with torch.no_grad():
            kept = self.recipe.momentum
            self.queue[seen] = F.normalize(kept * self.queue[seen] + (1 - kept) * v, dim=1)
        self.step += 1
        return loss

    def loss(self, own, others):
        return F.cross_entropy(torch.cat([own, others], 1), torch.zeros(len(own), dtype=torch.long))


class NoiseBank(Bank):
    """The same with NCE, Z the mean of the estimates so far (Wu et al. 2018, eqs. 4 to 6 and 8)."""

    noise = True

    def __init__(self, recipe):
        super().__init__(recipe)
        self.estimates = []

    def loss(self, own, others):
        self.estimates.append(IMAGES * others.detach().exp().mean())
        self.z = torch.stack(self.estimates).mean()
        noise = others.shape[1] / IMAGES
        own, others = own.exp() / self.z, others.exp() / self.z
        h_own, h_others = own / (own + noise), others / (others + noise)
        return -(h_own.log().squeeze(1) + (1 - h_others).log().sum(1)).mean()


MECHANISMS = {
    "moco": MoCo,
    "end_to_end": EndToEnd,
    "simclr": SimCLR,
    "bank": Bank,
    "bank_nce": NoiseBank,
}


def rate(recipe, step):
    """Returns the learning rate, which moves at the start of each epoch."""
    epoch = step // recipe.epoch_steps
    if recipe.milestones:
        return recipe.lr * 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


def images(recipe):
    """Returns two views int8[STEPS, B, S, S, 3] of the same noise, in each a fifth of it anew.

    Noise of two levels, so that the file is small.
    """
    shape = (STEPS, recipe.batch, recipe.pixels, recipe.pixels, 3)
    noise, *anew = [2 * torch.randint(2, shape, dtype=torch.int8) - 1 for _ in range(3)]
    return [torch.where(torch.rand(shape) < 0.2, other, noise) for other in anew]


def train(recipe):
    """Returns {name: array} of a recipe's start, images and five steps."""
    torch.manual_seed(0)
    model, (one, two) = MECHANISMS[recipe.mechanism](recipe), images(recipe)
    # The start is drawn in float32, so that the file may hold it so.
    start = {f"start/{k}": v.numpy().copy() for k, v in model.encoder_q.state_dict().items()}
    start["start/queue"] = model.queue.numpy().copy()

    model.double().train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        loss = model(*(view[step].double().permute(0, 3, 1, 2) for view in (one, two)))
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in trained]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        optimizer.step()
        losses.append(loss.item())

    result = {"loss": np.array(losses), "grad_norm": np.array(norms), "queue": model.queue.numpy()}
    result |= {f"query/{k}": v.numpy() for k, v in model.encoder_q.state_dict().items()}
    result |= {f"key/{k}": v.numpy() for k, v in model.encoder_k.state_dict().items()}
    for name, parameter in model.encoder_q.named_parameters():
        result[f"buffer/{name}"] = optimizer.state[parameter]["momentum_buffer"].numpy()
    for name, parameter in model.encoder_k.named_parameters():
        if parameter.requires_grad:
            result[f"key_buffer/{name}"] = optimizer.state[parameter]["momentum_buffer"].numpy()
    if isinstance(model, Bank):
        result |= {"indices": model.indices.numpy(), "drawn": model.drawn.numpy()}
    if isinstance(model, NoiseBank):
        result["z"] = model.z.numpy()
    arrays = start | {"views/one": one.numpy(), "views/two": two.numpy()} | result
    return {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}


def main():
    torch.set_num_threads(1)  # layers this small only wait for each other
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for name, recipe in RECIPES.items():
        np.savez_compressed(out / f"{name}.npz", **train(recipe))


if __name__ == "__main__":
    main()
