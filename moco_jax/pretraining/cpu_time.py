"""Estimates how long a run takes on the CPU: a ResNet-50 on large images takes weeks."""

import shlex

import jax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.data.loading.loader import cores
from moco_jax.models.encoder import make_encoder
from moco_jax.models.layers import convolution

# Of a core in the ResNet-50 at 224 (benchmarks/RESULTS.md: 2.7 images/s on 2 cores, 32 GFLOP each).
_FLOPS_PER_CORE = 45e9
_FORWARD_PASSES = 4  # of a query: forward, and backward for twice the work; of a key: forward
_MOST_PER_PIXEL = 1e7  # of any network of width 1 and patch 16, forward: less needs no closer look
_HOUR, _DAY = 3600, 86_400
_LONG = 6 * _HOUR  # a longer run is worth a warning


def warn(config: ConfigDict, steps: int, platform: str) -> list[str]:
    """Returns lines for a run that takes long on the CPU: how long, and what to do.

    Args:
      config: of the run, validated.
      steps: of the run.
      platform: of its devices, such as "cpu".
    """
    if platform != "cpu":
        return []
    finer = max(1, config.model.width) * max(1, 16 / config.model.patch)
    per_image = _MOST_PER_PIXEL * finer**2 * config.data.image_size**2
    if steps * _seconds_per_step(config, per_image) < _LONG:
        return []
    seconds = steps * _seconds_per_step(config, _forward_flops(config))
    if seconds < _LONG:
        return []
    c = config.model
    lines = [
        f"warning: on this CPU the run takes about {_length(seconds)}: {steps:,} steps of "
        f"{config.batch_size} images,",
        f"  a {c.name} on {config.data.image_size} pixels; use a GPU or TPU, or fewer steps: "
        "--config.steps=...",
    ]
    if config.fits_data and config.data.source == "images" and not _is_small(config):
        experiment = shlex.quote(f"configs/folder.py:{config.data.path},small")
        lines.append("A small network is fast enough:")
        lines.append(f"  python -m moco_jax.main --config={experiment}")
    return lines


def _seconds_per_step(config: ConfigDict, flops: float) -> float:
    """Returns the time of a step on the cores of this machine, given the FLOPs of an image."""
    return _FORWARD_PASSES * keys_per_step(config) * flops / (_FLOPS_PER_CORE * cores())


def _length(seconds: float) -> str:
    """Returns a long time in hours, days or weeks."""
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} hours"
    days = seconds / _DAY
    return f"{days:.0f} days" if days < 14 else f"{days / 7:.0f} weeks"


def _is_small(config: ConfigDict) -> bool:
    return config.model.name == "resnet10" and config.data.image_size <= 32


def _forward_flops(config: ConfigDict) -> float:
    """Returns the floating-point operations of the encoder for an image; compiles nothing."""
    config = config.copy_and_resolve_references()
    config.bn_groups = 1
    encoder, size = make_encoder(config), config.data.image_size
    image = jax.ShapeDtypeStruct((2, size, size, 3), "float32")
    variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
    forward = jax.jit(lambda v, x: encoder.apply(v, x, mutable=["batch_stats"]))
    with convolution.lax_only():
        lowered = forward.lower(variables, image)
    return (lowered.cost_analysis() or {}).get("flops", 0.0) / 2
