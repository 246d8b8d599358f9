"""Writes the golden files: five steps of MoCo in plain torch, float64 on a CPU.

The tests compare the JAX step with these files. The script follows the papers alone (He et al.
2019, Chen et al. 2020) and the recipes of their reference code. It shares nothing with `moco_jax`.

It trains a tiny ResNet for five steps with each of seven recipes. It writes one .npz per recipe
with the images, the initial weights and the results of the five steps, under torch's names.
`tests.golden.generate_v3` has the recipes of MoCo v3, `tests.golden.generate_mae` those of masked
pretraining.

Two rules are those of `moco_jax`, not of torch:
- Running averages of a split batch norm are the mean over the groups, not the first GPU's.
- The permutation of the keys is fixed: the transpose of the batch viewed as [groups, B / groups].

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

from tests.golden import generate_mae, generate_v3
from tests.golden.networks import DIM, GROUPS, Encoder
from tests.golden.views import STEPS, images

IMAGES = 80  # slots of a memory bank; a step sees 32 of them


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one run, in the papers' terms.

    Attributes:
      stem: 'imagenet' or 'cifar'.
      mlp: whether the head has a hidden layer (v2).
      pixels: height and width of the images.
      batch: B, images per step.
      queue: K, keys in the queue; with a memory bank, negatives per step.
      temperature: T of the loss.
      momentum: m of the key encoder; with a memory bank, of the slots.
      lr: learning rate at the start.
      weight_decay: of SGD.
      epochs: length of the schedule; the script runs its first five steps.
      epoch_steps: steps per epoch.
      milestones: epochs at which the learning rate falls to a tenth; () gives half a cosine.
      symmetric: whether each view is the query once and the key once.
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
    # v1 drops at epochs 120 and 160 of 200: epochs 3 and 4 of 5. Three batches fill the queue.
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
    queue=48,
    temperature=0.1,
    momentum=0.5,
    lr=0.06,
    weight_decay=5e-4,
    epochs=3,
    epoch_steps=2,
    mechanism="bank",
)
RECIPES |= {"bank": BANK, "bank_nce": dataclasses.replace(BANK, lr=0.03, mechanism="bank_nce")}


class MoCo(nn.Module):
    """MoCo: a query encoder, a momentum key encoder and a queue."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        self.encoder_q = Encoder(recipe.stem, recipe.mlp)
        self.encoder_k = Encoder(recipe.stem, recipe.mlp)
        # Scales start near 1 and biases near 0, so that an exchange of the two changes results.
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

    def encode_shuffled(self, encoder, images):
        """Returns the images' keys in order, from other batch-norm groups than their queries."""
        order = torch.arange(len(images)).view(GROUPS, -1).t().reshape(-1)
        return encoder(images[order])[order.argsort()]

    @torch.no_grad()
    def encode_keys(self, images):
        return self.encode_shuffled(self.encoder_k, images)

    @torch.no_grad()
    def enqueue(self, keys):
        self.queue[self.pointer : self.pointer + len(keys)] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)

    def contrast(self, query_images, key_images):
        """Returns the loss of one direction and its keys [B, D]."""
        q = self.encoder_q(query_images)
        k = self.encode_keys(key_images)
        positive = (q * k).sum(1, keepdim=True)
        negative = q @ self.queue.clone().t()  # a copy: the gradient needs the old keys
        logits = torch.cat([positive, negative], 1) / self.recipe.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), k

    def forward(self, one, two):
        """Returns the loss of two views [B, 3, S, S] and adds the keys to the queue."""
        self.momentum_update()
        loss, keys = self.contrast(one, two)
        if self.recipe.symmetric:
            other, more = self.contrast(two, one)
            loss, keys = loss + other, torch.cat([keys, more])
        self.enqueue(keys)
        return loss


class EndToEnd(MoCo):
    """Two trained encoders; a query's negatives are the batch's other keys (MoCo, fig. 2a)."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.encoder_k.requires_grad_(True)

    def forward(self, one, two):
        q, k = self.encoder_q(one), self.encode_shuffled(self.encoder_k, two)
        return F.cross_entropy(q @ k.t() / self.recipe.temperature, torch.arange(len(q)))


class SimCLR(MoCo):
    """One encoder with NT-Xent over both views (Chen et al. 2020, eq. 1)."""

    def forward(self, one, two):
        z = torch.cat([self.encoder_q(one), self.encode_shuffled(self.encoder_q, two)])
        logits = (z @ z.t() / self.recipe.temperature).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(z)).roll(len(one))
        # Twice the mean over 2B is the sum of both directions' means, as in symmetric MoCo.
        return 2 * F.cross_entropy(logits, partner)


class Bank(MoCo):
    """A memory bank with InfoNCE (MoCo, fig. 2b).

    The constructor draws the images of each step and the slots of its negatives. With InfoNCE no
    negative is an image of the batch.
    """

    draws_own_batch = False

    def __init__(self, recipe):
        super().__init__(recipe)
        self.encoder_k = nn.Module()
        self.register_buffer("queue", F.normalize(torch.randn(IMAGES, DIM), dim=1))
        self.indices = torch.stack([torch.randperm(IMAGES)[: recipe.batch] for _ in range(STEPS)])
        self.drawn = torch.stack([self.draw(seen) for seen in self.indices])
        self.step = 0

    def draw(self, seen):
        pool = torch.arange(IMAGES)
        if not self.draws_own_batch:
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
    """A memory bank with NCE (Wu et al. 2018, eqs. 4-6 and 8); Z is the mean of all estimates."""

    draws_own_batch = True

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
    """Returns the learning rate, which changes at the start of an epoch only."""
    epoch = step // recipe.epoch_steps
    if recipe.milestones:
        return recipe.lr * 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


def train(recipe):
    """Returns {name: array}: the initial state, the images and the results of five steps."""
    torch.manual_seed(0)
    model, (one, two) = MECHANISMS[recipe.mechanism](recipe), images(recipe.batch, recipe.pixels)
    # Weights are drawn in float32, so float32 in the file is exact.
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
    torch.set_num_threads(1)  # these layers are too small for several threads
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for script in (sys.modules[__name__], generate_v3, generate_mae):
        for name, recipe in script.RECIPES.items():
            np.savez_compressed(out / f"{name}.npz", **script.train(recipe))


if __name__ == "__main__":
    main()
