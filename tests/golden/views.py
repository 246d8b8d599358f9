"""The images of the golden files."""

import torch

STEPS = 5


def images(batch, pixels):
    """Returns two views int8[STEPS, B, S, S, 3] of the same noise; each redraws a fifth of it.

    The noise has two levels, which keeps the file small.
    """
    shape = (STEPS, batch, pixels, pixels, 3)
    noise, *redrawn = [2 * torch.randint(2, shape, dtype=torch.int8) - 1 for _ in range(3)]
    return [torch.where(torch.rand(shape) < 0.2, other, noise) for other in redrawn]
