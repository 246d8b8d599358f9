"""Five steps of MoCo v3 (Chen et al. 2021) in plain torch, for `tests.golden.generate`.

The recipes are those of the paper's ResNet-50 and ViT on small networks.
"""

import copy
import dataclasses
import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.golden.networks_v3 import ResNet, ViT, mlp
from tests.golden.views import STEPS, images

BATCH, PIXELS = 32, 16
HIDDEN, DIM = 12, 8  # of the heads
EPOCHS, EPOCH_STEPS, WARMUP_EPOCHS = 3, 2, 1
TRUST = 0.001  # of LARS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one run.

    Attributes:
      backbone: a class of `networks_v3`.
      projector_layers: linear layers of the projector.
      predictor_last_norm: whether batch norm follows the predictor's last layer.
      temperature: T of the loss.
      momentum: m of the key encoder at the start.
      optimizer: 'lars' or 'adamw'.
      lr: learning rate after the warm-up.
      weight_decay: of the optimizer.
    """

    backbone: type[nn.Module]
    projector_layers: int
    predictor_last_norm: bool
    temperature: float
    momentum: float
    optimizer: str
    lr: float
    weight_decay: float


RECIPES = {
    "v3_resnet": Recipe(
        backbone=ResNet,
        projector_layers=2,
        predictor_last_norm=False,
        temperature=1.0,
        momentum=0.99,
        optimizer="lars",
        lr=0.05,  # the gradients of scales and biases, which LARS does not rescale, are large here
        weight_decay=1e-4,  # the paper's 1e-6 would change little
    ),
    "v3_vit": Recipe(
        backbone=ViT,
        projector_layers=3,
        predictor_last_norm=True,
        temperature=0.2,
        momentum=0.99,
        optimizer="adamw",
        lr=1.5e-4,
        weight_decay=0.1,
    ),
}


class MoCo(nn.Module):
    """MoCo v3: backbone, projector and predictor; the key encoder is an EMA of the first two."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        backbone = recipe.backbone()
        hidden = [HIDDEN] * (recipe.projector_layers - 1)
        projector = mlp([backbone.features, *hidden, DIM], last_norm=True)
        self.base = nn.ModuleDict({"backbone": backbone, "projector": projector})
        self.predictor = mlp([DIM, HIDDEN, DIM], recipe.predictor_last_norm)
        for name, parameter in self.named_parameters():
            draw(name, parameter)
        self.key = copy.deepcopy(self.base).requires_grad_(False)

    @torch.no_grad()
    def momentum_update(self, m):
        for q, k in zip(self.base.parameters(), self.key.parameters(), strict=True):
            k.mul_(m).add_(q, alpha=1 - m)

    def contrast(self, queries, keys):
        """Returns 2T times InfoNCE; the keys of the other images are the negatives."""
        similarities = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).t()
        loss = F.cross_entropy(similarities / self.recipe.temperature, torch.arange(len(queries)))
        return 2 * self.recipe.temperature * loss

    def forward(self, one, two, m):
        """Returns the loss of two views [B, 3, S, S]; m is the momentum of this step."""
        self.momentum_update(m)
        q1, q2 = (self.predictor(project(self.base, view)) for view in (one, two))
        with torch.no_grad():
            k1, k2 = (project(self.key, view) for view in (one, two))
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def query_state(self):
        """Returns {name: array} of the query encoder: parameters and running averages."""
        return named(self.base) | named(self.predictor, "predictor.")

    def key_state(self):
        return named(self.key)


def draw(name, parameter):
    """Draws a parameter: scales near 1 and biases near 0, so that an exchange changes results."""
    if parameter.ndim == 1:
        nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.1)
    elif name.endswith("cls_token"):
        nn.init.normal_(parameter, 0.0, 0.5)
    else:
        nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)


def project(encoder, images):
    return encoder["projector"](encoder["backbone"](images))


def named(module, prefix=""):
    state = {f"{prefix}{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


class Lars(torch.optim.Optimizer):
    """LARS (You et al. 2017) as in MoCo v3; scales and biases have neither decay nor trust ratio.

    The momentum buffer takes in the scaled gradient, and the learning rate multiplies the buffer.
    """

    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                change = p.grad
                if p.ndim > 1:
                    change = change + group["weight_decay"] * p
                    if p.norm() > 0 and change.norm() > 0:
                        change = change * (TRUST * p.norm() / change.norm())
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.mul_(0.9).add_(change)
                p.sub_(group["lr"] * buffer)


# With torch's eps of 1e-8, AdamW turns the rounding errors of a gradient of 0 into changes, and the
# place of eps in the formula does not show.
OPTIMIZERS = {"lars": Lars, "adamw": functools.partial(torch.optim.AdamW, eps=1e-5)}
# Name in the optimizer's state -> name in the file.
BUFFERS = {
    "lars": {"momentum_buffer": "buffer"},
    "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
}


def rate(recipe, step):
    """Returns the learning rate: a linear warm-up from 0, then half a cosine, at every step."""
    epoch = step / EPOCH_STEPS
    if epoch < WARMUP_EPOCHS:
        return recipe.lr * epoch / WARMUP_EPOCHS
    progress = (epoch - WARMUP_EPOCHS) / (EPOCHS - WARMUP_EPOCHS)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))


def key_momentum(recipe, step):
    """Returns m, which rises to 1 as half a cosine over all epochs, the warm-up too."""
    progress = step / EPOCH_STEPS / EPOCHS
    return 1 - 0.5 * (1 + math.cos(math.pi * progress)) * (1 - recipe.momentum)


def train(recipe):
    """Returns {name: array}: the initial state, the images and the results of five steps.

    Besides the final state, `norms/query` and `norms/key` hold the L2 norm of each array of these
    states after each step, [STEPS, arrays].
    """
    torch.manual_seed(0)
    model, (one, two) = MoCo(recipe), images(BATCH, PIXELS)
    # Weights are drawn in float32, so float32 in the file is exact.
    arrays = {f"start/{k}": v for k, v in model.query_state().items()}
    arrays |= {"views/one": one.numpy(), "views/two": two.numpy()}

    model.double().train()
    trained = {k: p for k, p in model.base.named_parameters() if p.requires_grad}
    trained |= {f"predictor.{k}": p for k, p in model.predictor.named_parameters()}
    make = OPTIMIZERS[recipe.optimizer]
    optimizer = make(trained.values(), recipe.lr, weight_decay=recipe.weight_decay)
    seen = {k: [] for k in ("loss", "grad_norm", "lr", "momentum", "norms/query", "norms/key")}
    for step in range(STEPS):
        seen["lr"].append(rate(recipe, step))
        seen["momentum"].append(key_momentum(recipe, step))
        for group in optimizer.param_groups:
            group["lr"] = seen["lr"][-1]
        views = (view[step].double().permute(0, 3, 1, 2) for view in (one, two))
        loss = model(*views, seen["momentum"][-1])
        optimizer.zero_grad()
        loss.backward()
        seen["loss"].append(loss.item())
        gradients = [p.grad.flatten() for p in trained.values()]
        seen["grad_norm"].append(torch.cat(gradients).norm().item())
        optimizer.step()
        for kind, state in (("query", model.query_state()), ("key", model.key_state())):
            seen[f"norms/{kind}"].append([np.linalg.norm(v) for v in state.values()])

    arrays |= {k: np.array(v) for k, v in seen.items()}
    arrays |= {f"query/{k}": v for k, v in model.query_state().items()}
    arrays |= {f"key/{k}": v for k, v in model.key_state().items()}
    for name, parameter in trained.items():
        for key, kept in BUFFERS[recipe.optimizer].items():
            arrays[f"{kept}/{name}"] = optimizer.state[parameter][key].numpy()
    return arrays
