"""A convolution and a batch norm in NumPy, as references for tests."""

import numpy as np


def convolve(x: np.ndarray, kernel: np.ndarray, dilation: int = 1) -> np.ndarray:
    """Returns [H, W, O] of x [H, W, I] and a kernel [k, k, I, O], stride 1, padded to keep H, W."""
    size, pad = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    height, width, _ = x.shape
    out = np.zeros((height, width, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            out += padded[top : top + height, left : left + width] @ kernel[i, j]
    return out


def normalized(x: np.ndarray, params: dict, stats: dict) -> np.ndarray:
    """Returns x [..., C] after batch norm by running averages."""
    scale = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    return (x - stats["mean"]) * scale + params["bias"]
