"""Torch's SGD and AdamW, MoCo v3's LARS, and learning-rate schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

Schedule = Callable[[jax.Array | int], jax.Array]
Mask = Callable[[optax.Params], Any] | None


def _cosine(progress: jax.Array, config: ConfigDict) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _step(progress: jax.Array, config: ConfigDict) -> jax.Array:
    # .6 x 200 epochs is not exact in binary; the drop must be at the exact epoch.
    return jnp.prod(jnp.where(progress + 1e-6 >= jnp.asarray(config.lr_drops), 0.1, 1.0))


def _constant(progress: jax.Array, config: ConfigDict) -> jax.Array:
    return jnp.ones_like(progress)


SCHEDULES = {"cosine": _cosine, "step": _step, "constant": _constant}
# When the schedule moves -> (epoch, with its fraction) -> the epoch that the schedule sees.
UPDATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "epoch": lambda epoch: jnp.floor(epoch + 1e-6),
    "epoch_from_1": lambda epoch: jnp.floor(epoch + 1e-6) + 1,
    "step": lambda epoch: epoch,
}


def scaled_lr(config: ConfigDict, lr: float) -> float:
    """Returns the learning rate for the batch, given one for `lr_batch` images."""
    return lr * config.batch_size / config.lr_batch


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the length of the run in steps, at least 1."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * steps_per_epoch))


def peak_lr(config: ConfigDict) -> float:
    """Returns the highest learning rate of the schedule."""
    return scaled_lr(config, config.lr)


def make_schedule(
    config: ConfigDict, steps_per_epoch: int, peak: float | None = None, floor: float = 0.0
) -> Schedule:
    """Returns step -> learning rate f32[].

    The decay starts after the warm-up. With `lr_update='epoch'` it moves at the start of each
    epoch, as in the references of v1 and v2; with 'epoch_from_1' too, but the first epoch has the
    number 1, as in the reference's CIFAR-10 demo, so that the last epoch of a cosine has rate 0.
    The warm-up moves at every step (MoCo v3).

    Args:
      config: has the keys `lr_*`, `warmup_epochs`, and `epochs` or `steps`.
      steps_per_epoch: steps of one pass over the data.
      peak: the highest learning rate; default `peak_lr(config)`.
      floor: the rate that the decay falls to.
    """
    decay, move = SCHEDULES[config.lr_schedule], UPDATES[config.lr_update]
    epochs = total_steps(config, steps_per_epoch) / steps_per_epoch
    warmup = min(config.warmup_epochs, epochs)
    peak = peak_lr(config) if peak is None else peak

    def schedule(step):
        epoch = jnp.asarray(step, jnp.result_type(float)) / steps_per_epoch
        progress = jnp.clip((move(epoch) - warmup) / max(epochs - warmup, 1e-6), 0.0, 1.0)
        rise = jnp.minimum(epoch / warmup, 1.0) if warmup else 1.0
        return (peak - floor) * rise * decay(progress, config) + floor * rise

    return schedule


def _sgd(config: ConfigDict, decayed: Mask) -> tuple[optax.GradientTransformation, ...]:
    """Torch's SGD: decay is added to the gradient, momentum precedes the learning rate."""
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    return decay, optax.trace(decay=config.sgd_momentum)


def _lars(config: ConfigDict, decayed: Mask) -> tuple[optax.GradientTransformation, ...]:
    """LARS as in moco-v3's `moco/optimizer.py`: optax.lars has the learning rate before momentum.

    Decay and trust ratio leave out biases and scales of norms, which are vectors. The ratio of a
    norm of 0 is 1.
    """
    return (
        optax.add_decayed_weights(config.weight_decay, matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=config.lars_trust), matrices),
        optax.trace(decay=config.sgd_momentum),
    )


def matrices(params: optax.Params) -> Any:
    """Returns which parameters are not vectors, as biases and scales of norms are."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _adamw(config: ConfigDict, decayed: Mask) -> tuple[optax.GradientTransformation, ...]:
    """Torch's AdamW: decay is not divided by the second moment."""
    adam = optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps)
    return adam, optax.add_decayed_weights(config.weight_decay, decayed)


def _for_each(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation of one model, applied to each of several stacked models."""

    def update(updates, state, params=None):
        return jax.vmap(transform.update)(updates, state, params)

    return optax.GradientTransformation(jax.vmap(transform.init), update)


# The values of `config.optimizer`: what precedes the learning rate.
OPTIMIZERS = {"sgd": _sgd, "lars": _lars, "adamw": _adamw}


def make_optimizer(
    config: ConfigDict,
    schedule: Schedule,
    factors: Callable[[optax.Params], optax.Params] | None = None,
    frozen: Sequence[str] = (),
    decayed: Mask = None,
    stacked: bool = False,
) -> optax.GradientTransformation:
    """Returns the optimizer of a config.

    Args:
      config: has `weight_decay` and the keys of its `optimizer`, SGD if it has no such key.
      schedule: step -> learning rate.
      factors: params -> the factor of each parameter's learning rate, with the parameter's rank;
        default 1.
      frozen: names of parts of the backbone that keep their values: decay would change parameters
        without a gradient.
      decayed: params -> whether each has weight decay; default all. Not read by LARS.
      stacked: whether the first axis of every parameter counts models, each with norms of its own.
    """
    before = OPTIMIZERS[config.get("optimizer", "sgd")](config, decayed)
    if stacked:
        before = tuple(map(_for_each, before))
    optimizer = optax.chain(
        *before,
        optax.scale_by_learning_rate(schedule),  # pyright: ignore[reportArgumentType]
    )
    if factors is not None:
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(jnp.multiply, updates, factors(updates))
        )
        optimizer = optax.chain(optimizer, scale)
    if not frozen:
        return optimizer

    def part(path: Any, _: jax.Array) -> str:
        names = [getattr(entry, "key", None) for entry in path]
        inside = "backbone" in names and names[names.index("backbone") + 1] in frozen
        return "frozen" if inside else "trained"

    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()},
        lambda params: jax.tree.map_with_path(part, params),
    )
