"""Encoders of moco_jax and of other libraries in which no array has its initial value.

The libraries are not in the extra `test`: pip install 'moco-jax[convert-test]'.
"""

import importlib
import subprocess
import sys
import warnings

import flax.traverse_util
import jax
import numpy as np
import pytest

from moco_jax.encoders.pretrained import Pretrained
from moco_jax.models.encoder import Encoder
from moco_jax.weights.sources import Source
from moco_jax.weights.variables import template
from tests.tiny import tiny_config

_OPERATORS = []  # torch removes the operators when their library object is freed


def library(name: str):
    """Returns a library, or skips the test if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built_on = name.split(".")[0] in ("torchvision", "timm", "transformers")
            if built_on and not _OPERATORS and not _torchvision_fits():
                _define_operators(importlib.import_module("torch"))
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}: pip install 'moco-jax[convert-test]'")


def _torchvision_fits() -> bool:
    """Returns whether torchvision was built for the installed torch.

    Version numbers do not show it. A failed import can't be repeated in this process, so another
    one tries it.
    """
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    return done.returncode == 0


def _define_operators(torch):
    """Defines the operators that torchvision's import needs and only its own torch provides."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _OPERATORS.append(library)


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns a random array: near 1 for variances and scales, near 0 for others."""
    if "var" in name or "scale" in name:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:  # roughly 1 / sqrt(fan-in)
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape) / max(shape))).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def encoder(*, head: bool | str = True, **model) -> Pretrained:
    """Returns an encoder of `tiny_config` with changes to its `model`.

    Args:
      head: whether it has a head, or its `model.head`.
    """
    if isinstance(head, str):
        model["head"] = head
    config = tiny_config(**{f"model__{key}": value for key, value in model.items()})
    if model.get("stem") == "conv":
        config.data.image_size = config.data.eval_resize = 32
    rng = np.random.default_rng(0)
    shapes = template(config, head=bool(head))
    flat = {path: draw(path[-1], x.shape, rng) for path, x in shapes.items()}
    return Pretrained(config, flax.traverse_util.unflatten_dict(flat), "made for a test")


def source(**model) -> Source:
    return Source(encoder(**model), "an encoder", [])


def randomise(module, seed: int = 0):
    """Redraws all arrays of a torch module, batch norms too; returns it in evaluation mode."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
        elif hasattr(part, "weight"):
            torch.nn.init.kaiming_normal_(part.weight, generator=generator)
    return module.eval()


def random_images(size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def features(found: Pretrained, images: np.ndarray) -> np.ndarray:
    """Returns the backbone's features."""
    return _apply(found, Encoder.features, images)


def projection(found: Pretrained, images: np.ndarray) -> np.ndarray:
    """Returns the head's outputs, unit vectors."""
    return _apply(found, Encoder.projection, images)


def _apply(found: Pretrained, method, images: np.ndarray) -> np.ndarray:
    apply = jax.jit(
        lambda variables, x: found.encoder.apply(variables, x, method=method),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(apply(found.variables, images))


def in_torch(module, images: np.ndarray) -> np.ndarray:
    """Returns a torch module's outputs for the same images, one row per image."""
    torch = library("torch")
    with torch.no_grad():
        out = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return getattr(out, "pooler_output", out).numpy().reshape(len(images), -1)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    """Compares with a tolerance of 1e-4 of the largest value."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def assert_same(got: dict, want: dict) -> None:
    """Compares nested arrays bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, got, want)
