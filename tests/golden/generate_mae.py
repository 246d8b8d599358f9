"""Five steps of masked pretraining in plain torch, for `tests.golden.generate`.

`mae` is the method of He et al. 2021. `both` adds its loss to that of MoCo v3 (Chen et al. 2021):
the queries are masked and the keys are not. Each masked view is encoded once, for both losses.
"""

import copy
import dataclasses
import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.golden.generate_v3 import (
    BATCH,
    DIM,
    EPOCH_STEPS,
    EPOCHS,
    HIDDEN,
    PIXELS,
    draw,
    named,
    project,
    rate,
)
from tests.golden.networks_mae import PATCH, Decoder, MaskedViT, pixel_loss, visible_patches
from tests.golden.networks_v3 import mlp
from tests.golden.views import STEPS, images

SIDE = PIXELS // PATCH  # patches
TEMPERATURE, MOMENTUM = 0.2, 0.99
EPS = 1e-5  # see generate_v3.py


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one run.

    Attributes:
      column_first: orientation of the positions.
      decoder_depth: blocks of the decoder.
      normalized: whether the decoder predicts normalised pixels.
      betas: of AdamW.
      weight_decay: of AdamW.
      decays_vectors: whether biases and scales have weight decay.
      frozen: whether the patch projection is not trained.
      contrastive_weight: of MoCo v3's loss; 0 for a run without it.
      masked_weight: of the decoder's loss.
      symmetric: whether each view is the query once and the key once. The pixel loss is then the
        mean of both views.
      fraction: of the patches that are masked.
      lr: learning rate after the warm-up.
    """

    column_first: bool
    decoder_depth: int
    normalized: bool
    betas: tuple[float, float]
    weight_decay: float
    decays_vectors: bool
    frozen: bool
    contrastive_weight: float
    masked_weight: float = 1.0
    symmetric: bool = False
    fraction: float = 0.75
    lr: float = 1.5e-4


MAE = Recipe(
    column_first=True,
    decoder_depth=2,
    normalized=True,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    decays_vectors=False,
    frozen=False,
    contrastive_weight=0.0,
)
BOTH = Recipe(
    column_first=False,
    decoder_depth=1,
    normalized=True,
    betas=(0.9, 0.999),
    weight_decay=0.1,
    decays_vectors=True,
    frozen=True,
    contrastive_weight=1.0,
)
RECIPES = {
    "mae": MAE,
    "both": BOTH,
    "both_symmetric": dataclasses.replace(
        MAE,
        symmetric=True,
        normalized=False,
        contrastive_weight=0.5,
        masked_weight=2.0,
        fraction=0.6,  # 6.4 patches are visible: 6
    ),
}


class Masked(nn.Module):
    """The networks of a recipe; a run without contrast has neither heads nor a key encoder."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        self.base = nn.ModuleDict({"backbone": MaskedViT(recipe.frozen, recipe.column_first)})
        self.extra = nn.ModuleDict({"decoder": Decoder(recipe.decoder_depth, recipe.column_first)})
        if recipe.contrastive_weight:
            sizes = [MaskedViT.features, HIDDEN, HIDDEN, DIM]
            self.base["projector"] = mlp(sizes, last_norm=True)
            self.extra["predictor"] = mlp([DIM, HIDDEN, DIM], last_norm=True)
        for name, parameter in self.named_parameters():
            draw(name.replace("mask_token", "cls_token"), parameter)
        self.key = copy.deepcopy(self.base).requires_grad_(False)

    def trained(self):
        """Returns {name: parameter} of the query encoder and the decoder."""
        own = [*self.base.named_parameters(), *self.extra.named_parameters()]
        return {name: p for name, p in own if p.requires_grad}

    def query_state(self):
        return named(self.base) | named(self.extra)

    def key_state(self):
        return named(self.key) if self.recipe.contrastive_weight else {}

    def pixels_and_features(self, view, noise):
        """Returns the pixel loss of a view and its class token's features, from one pass."""
        visible = visible_patches(noise, self.recipe.fraction)
        tokens = self.base["backbone"].tokens(view, visible)
        predicted = self.extra["decoder"](tokens, visible, SIDE)
        return pixel_loss(predicted, view, visible, self.recipe.normalized), tokens[:, 0]

    def forward(self, views, noises, m):
        """Returns (contrastive, masked) losses.

        Args:
          views: of [B, 3, S, S].
          noises: [B, rows, columns] for each view that becomes queries, the first ones.
          m: momentum of this step.
        """
        passes = [
            self.pixels_and_features(view, noise)
            for view, noise in zip(views, noises, strict=False)
        ]
        masked = torch.stack([pixels for pixels, _ in passes]).mean()
        if not self.recipe.contrastive_weight:
            return torch.zeros(()), masked
        with torch.no_grad():
            for q, k in zip(self.base.parameters(), self.key.parameters(), strict=True):
                k.mul_(m).add_(q, alpha=1 - m)
            used = views if self.recipe.symmetric else views[1:]
            keys = [project(self.key, view) for view in used][::-1]
        heads = [self.extra["predictor"](self.base["projector"](cls)) for _, cls in passes]
        return sum(contrast(q, k) for q, k in zip(heads, keys, strict=True)), masked


def contrast(queries, keys):
    """Returns 2T times InfoNCE; the keys of the other images are the negatives."""
    similarities = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).t()
    labels = torch.arange(len(queries))
    return 2 * TEMPERATURE * F.cross_entropy(similarities / TEMPERATURE, labels)


def key_momentum(step):
    """Returns m, which rises to 1 as half a cosine over all epochs."""
    return 1 - 0.5 * (1 + math.cos(math.pi * step / EPOCH_STEPS / EPOCHS)) * (1 - MOMENTUM)


def make_optimizer(recipe, trained):
    """Returns AdamW; the class token and the mask token are no vectors, so they always decay."""
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1]},
        {
            "params": [p for p in trained.values() if p.ndim == 1],
            "weight_decay": recipe.weight_decay if recipe.decays_vectors else 0.0,
        },
    ]
    make = functools.partial(torch.optim.AdamW, betas=recipe.betas, eps=EPS)
    return make(groups, recipe.lr, weight_decay=recipe.weight_decay)


def train(recipe):
    """Returns {name: array}: the initial state, the images and the results of five steps.

    `noise` f32[STEPS, V, B, rows, columns] decides which patches are visible in each of the V views
    that become queries. `norms/*` are those of generate_v3.py.
    """
    torch.manual_seed(0)
    model, views = Masked(recipe), images(BATCH, PIXELS)
    masked_views = 2 if recipe.symmetric else 1
    noise = torch.rand(STEPS, masked_views, BATCH, SIDE, SIDE)
    views = views if recipe.contrastive_weight else views[:1]
    # Weights are drawn in float32, so float32 in the file is exact.
    arrays = {f"start/{k}": v for k, v in model.query_state().items()} | {"noise": noise.numpy()}
    arrays |= {f"views/{k}": v.numpy() for k, v in zip(("one", "two"), views, strict=False)}

    model.double().train()
    trained = model.trained()
    optimizer = make_optimizer(recipe, trained)
    seen = {k: [] for k in ("loss", "grad_norm", "lr")}
    if recipe.contrastive_weight:
        seen |= {k: [] for k in ("contrastive_loss", "masked_loss", "momentum")}
    norms = {"query": [], "key": []}
    for step in range(STEPS):
        seen["lr"].append(rate(recipe, step))
        momentum = key_momentum(step)
        for group in optimizer.param_groups:
            group["lr"] = seen["lr"][-1]
        batch = [view[step].double().permute(0, 3, 1, 2) for view in views]
        contrastive, masked = model(batch, noise[step].double(), momentum)
        loss = recipe.contrastive_weight * contrastive + recipe.masked_weight * masked
        optimizer.zero_grad()
        loss.backward()
        seen["loss"].append(loss.item())
        if recipe.contrastive_weight:
            seen["contrastive_loss"].append(contrastive.item())
            seen["masked_loss"].append(masked.item())
            seen["momentum"].append(momentum)
        gradients = [p.grad.flatten() for p in trained.values()]
        seen["grad_norm"].append(torch.cat(gradients).norm().item())
        optimizer.step()
        for kind, state in (("query", model.query_state()), ("key", model.key_state())):
            norms[kind].append([np.linalg.norm(v) for v in state.values()])

    arrays |= {k: np.array(v) for k, v in seen.items()}
    arrays |= {f"norms/{k}": np.array(v) for k, v in norms.items()}
    arrays |= {f"query/{k}": v for k, v in model.query_state().items()}
    arrays |= {f"key/{k}": v for k, v in model.key_state().items()}
    for name, parameter in trained.items():
        for kept in ("exp_avg", "exp_avg_sq"):
            arrays[f"{kept}/{name}"] = optimizer.state[parameter][kept].numpy()
    return arrays
